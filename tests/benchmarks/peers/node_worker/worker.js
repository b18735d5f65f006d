// The same worker in Node: amqplib and stripe-node. With DATABASE_URL it keeps a row of PostgreSQL for each order,
// written before Stripe is asked and completed after, each in a transaction of its own; without, nothing.
import amqp from 'amqplib';
import pg from 'pg';
import Stripe from 'stripe';

const LEDGER_CONNECTIONS = 8;
const ORDER_ID = /^[A-Za-z0-9._:-]{1,64}$/;
const AMOUNT = /^\d{1,9}(?:\.\d{1,2})?$/;
const CURRENCY = /^[a-z]{3}$/;

const env = process.env;
const prefetch = Number(env.PREFETCH);
const base = new URL(env.STRIPE_API_BASE);
const stripe = new Stripe(env.STRIPE_API_KEY, {
  host: base.hostname,
  port: base.port,
  protocol: base.protocol.replace(':', ''),
  maxNetworkRetries: 0,
  telemetry: false,
});
const ledger = env.DATABASE_URL ? await openLedger(env.DATABASE_URL) : null;
const connection = await amqp.connect(env.AMQP_URL);
const channel = await connection.createConfirmChannel();
await channel.prefetch(prefetch);
await channel.consume(env.ORDERS_QUEUE, (message) => {
  work(message).then(
    () => channel.ack(message),
    (error) => {
      log('error', 'order.failed', { error: String(error) });
      channel.nack(message, false, error.retryable !== false);
    },
  );
});

async function work(message) {
  const order = readOrder(message.content);
  const key = `node-worker:${order.orderId}`;
  await ledger?.query({
    name: 'start',
    text: `INSERT INTO payments (order_id, state, amount_minor, currency, idempotency_key, opened_at)
      VALUES ($1, 'started', $2, $3, $4, now()) ON CONFLICT (order_id) DO NOTHING`,
    values: [order.orderId, order.amountMinor, order.currency, key],
  });
  const intent = await stripe.paymentIntents.create(
    {
      amount: order.amountMinor,
      currency: order.currency,
      metadata: { order_id: order.orderId },
      automatic_payment_methods: { enabled: true },
    },
    { idempotencyKey: key },
  );
  await ledger?.query({
    name: 'finish',
    text: `UPDATE payments SET state = 'intent_created', payment_id = $2, status = $3, moved_at = now()
      WHERE order_id = $1`,
    values: [order.orderId, intent.id, intent.status],
  });
  await tell(order, intent);
  log('info', 'payment.intent_created', { order_id: order.orderId, payment_id: intent.id });
}

// Throws an error that is not to be tried again for what is no order.
function readOrder(content) {
  const given = JSON.parse(content.toString());
  const currency = String(given.currency ?? 'usd').toLowerCase();
  if (!ORDER_ID.test(given.order_id) || !AMOUNT.test(given.amount) || !CURRENCY.test(currency)) {
    throw Object.assign(new Error('not an order'), { retryable: false });
  }
  return { orderId: given.order_id, amountMinor: Math.round(Number(given.amount) * 100), currency };
}

// Publishes the event; settled once the broker has confirmed it.
function tell(order, intent) {
  const type = 'payment.intent_created';
  const event = {
    specversion: '1.0',
    type,
    id: `${order.orderId}/payment/1`,
    source: 'node-worker',
    subject: order.orderId,
    time: new Date().toISOString(),
    datacontenttype: 'application/json',
    data: {
      order_id: order.orderId,
      payment_id: intent.id,
      status: intent.status,
      amount_minor: intent.amount,
      currency: intent.currency,
      livemode: intent.livemode,
    },
  };
  const options = { persistent: true, mandatory: true, messageId: event.id, type };
  options.contentType = 'application/cloudevents+json';
  return new Promise((resolve, reject) => {
    channel.publish(env.PAYMENTS_EXCHANGE, type, Buffer.from(JSON.stringify(event)), options, (error) =>
      error ? reject(error) : resolve(),
    );
  });
}

async function openLedger(url) {
  const pool = new pg.Pool({ connectionString: url, max: LEDGER_CONNECTIONS });
  await pool.query(`CREATE TABLE IF NOT EXISTS payments (
    order_id varchar(64) PRIMARY KEY, state varchar(20) NOT NULL, amount_minor bigint NOT NULL,
    currency varchar(3) NOT NULL, idempotency_key varchar(255) NOT NULL UNIQUE, payment_id varchar(255) UNIQUE,
    status varchar(40), opened_at timestamptz NOT NULL, moved_at timestamptz)`);
  return pool;
}

function log(level, event, fields) {
  process.stdout.write(`${JSON.stringify({ timestamp: new Date().toISOString(), level, event, ...fields })}\n`);
}
