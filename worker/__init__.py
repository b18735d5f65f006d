"""Turns order events on RabbitMQ into Stripe PaymentIntents: never twice, never lost."""
