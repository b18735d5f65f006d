# The worker and the Stripe sandbox in one small image: docker build --tag payment-worker .
FROM python:3.13-slim AS build
WORKDIR /build
RUN python -m venv /opt/worker
ENV PATH=/opt/worker/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
COPY requirements.txt ./
RUN pip install --require-hashes --requirement requirements.txt
COPY pyproject.toml README.md LICENSE ./
COPY schemas schemas
COPY worker worker
RUN pip install --no-deps --no-build-isolation --no-index .

FROM python:3.13-slim
COPY --from=build /opt/worker /opt/worker
# The number, not the name, lets Kubernetes' runAsNonRoot see that this is not root. /data takes the SQLite ledger.
RUN useradd --uid 10001 --create-home --home-dir /data worker
USER 10001:10001
WORKDIR /data
VOLUME /data
ENV PATH=/opt/worker/bin:$PATH PYTHONUNBUFFERED=1 HTTP_HOST=0.0.0.0 HTTP_PORT=8080
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["python", "-c", "import http.client, os, sys; link = http.client.HTTPConnection('127.0.0.1', int(os.environ['HTTP_PORT']), timeout=4); link.request('GET', '/livez'); sys.exit(link.getresponse().status != 200)"]
ENTRYPOINT ["payment-worker"]
CMD ["run"]
