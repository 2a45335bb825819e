# The functions for anything that runs a container and sends HTTP to $PORT. No secret is in it.
#   docker build -t serverless-hands .
#   docker build -t serverless-hands-page --target page .   # with the page at /ui/: docs/ui.md, "In a container"
# A tag moves, a digest does not. `make pin-images` writes the newest: docs/deploy/host.md, "The base image".
ARG BASE=python:3.13-slim-trixie@sha256:9d2e5553305c7c7b0097999bb17187c69b921ccd6bc9d40e4bb5ebe652c00285
FROM ${BASE} AS dependencies
COPY requirements/runtime.lock /tmp/runtime.lock
RUN python -m venv /opt/hands/venv \
 && /opt/hands/venv/bin/python -m pip install --no-cache-dir --compile --only-binary :all: --require-hashes \
      --requirement /tmp/runtime.lock

FROM ${BASE} AS functions
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin hands
COPY --from=dependencies /opt/hands/venv /opt/hands/venv
COPY functions /opt/hands/functions
COPY shared /opt/hands/shared
COPY image/__init__.py /opt/hands/image/__init__.py
COPY image/session /opt/hands/image/session
# Without byte code a cold start takes twice as long, and the user may not write any.
RUN /opt/hands/venv/bin/python -m compileall -q -j 0 /opt/hands/functions /opt/hands/shared /opt/hands/image
ENV PORT=8080 LOG_FORMAT=json
WORKDIR /opt/hands
USER 10001
EXPOSE 8080
# exec: uvicorn itself gets SIGTERM, and lets a running drain finish.
CMD ["/bin/sh", "-c", "exec /opt/hands/venv/bin/python -m uvicorn functions.asgi:app --host 0.0.0.0 --port \"$PORT\" --http functions.server.http_protocol:BoundedHttpProtocol --ws none --backlog 128 --no-access-log --timeout-graceful-shutdown 120"]

# It wants ANTHROPIC_API_KEY, which the functions never read: whoever gives it to a container has chosen so.
FROM functions AS page
USER 0
COPY requirements/user.lock /tmp/user.lock
RUN /opt/hands/venv/bin/python -m pip install --no-cache-dir --compile --only-binary :all: --require-hashes \
      --requirement /tmp/user.lock
COPY infra /opt/hands/infra
RUN /opt/hands/venv/bin/python -m compileall -q -j 0 /opt/hands/infra
USER 10001
CMD ["/bin/sh", "-c", "exec /opt/hands/venv/bin/python -m uvicorn infra.cli.ui.served:app --host 0.0.0.0 --port \"$PORT\" --http functions.server.http_protocol:BoundedHttpProtocol --ws none --backlog 128 --no-access-log --timeout-graceful-shutdown 120"]

FROM functions
