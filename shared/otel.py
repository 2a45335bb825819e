"""OpenTelemetry, switched on by its own standard variables; without them nothing of it is imported.

    OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4318      traces and metrics by OTLP over HTTP
    OTEL_METRICS_EXPORTER=prometheus                       metrics at /metrics, under the token (or otlp,prometheus)

Everything else is as the SDK's documentation says: OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, OTEL_TRACES_SAMPLER,
OTEL_EXPORTER_OTLP_HEADERS, OTEL_METRIC_EXPORT_INTERVAL and so on. The SDK comes with the extra `otel`. Where somebody
has set providers up before (`opentelemetry-instrument`), those are used.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from typing import Any, Final

from shared import metrics, tracing
from shared.errors import SecretUnavailable, SettingsError
from shared.secret import Secret

log = logging.getLogger(__name__)

NAME: Final = "serverless-hands"
SECRETS: Final = (
    "OTEL_EXPORTER_OTLP_HEADERS",
    "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
    "OTEL_EXPORTER_OTLP_METRICS_HEADERS",
)
"""Variables that may hold a credential, or say where one lives as other secrets do (shared/secret.py)."""
_FLUSH_MS: Final = 2000
_KNOWN: Final = ("otlp", "prometheus", "none")

_prometheus: Any = None
_providers: list[Any] = []


def exporters(environ: Mapping[str, str], signal: str) -> tuple[str, ...]:
    """What exports TRACES or METRICS. Raises SettingsError for one that is not known here."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return ()
    text = environ.get(f"OTEL_{signal}_EXPORTER", "").strip()
    if not text:
        sent = ("OTEL_EXPORTER_OTLP_ENDPOINT", f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT")
        return ("otlp",) if any(environ.get(name, "").strip() for name in sent) else ()
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    known = _KNOWN if signal == "METRICS" else ("otlp", "none")
    wrong = [name for name in names if name not in known]
    if wrong:
        raise SettingsError(f"OTEL_{signal}_EXPORTER must be of {', '.join(known)}, not {wrong[0][:40]!r}")
    return tuple(name for name in names if name != "none")


def start(environ: Mapping[str, str]) -> None:
    """Once a process; a second call changes nothing. A telemetry that cannot work is said and stops nobody's work."""
    if _providers or not any(name.startswith("OTEL_") for name in environ):
        return
    try:
        traces, measures = exporters(environ, "TRACES"), exporters(environ, "METRICS")
        if traces or measures:
            _bring(environ)
            _start(traces, measures)
    except (SettingsError, SecretUnavailable) as error:
        log.error("telemetry.off %s", error)
    except ImportError:
        log.error("telemetry.off the SDK is not installed: pip install 'serverless-hands[otel]'")
    except Exception as error:  # the edge: what is wrong with an exporter's settings is no reason to serve nobody
        log.error("telemetry.off error=%s", type(error).__name__)


def _bring(environ: Mapping[str, str]) -> None:
    """The SDK reads the process's own variables: what came another way (HANDS_SETTINGS on Lambda) joins them, and a
    reference to a secret becomes its value. Raises SecretUnavailable."""
    for name, text in environ.items():
        if name.startswith("OTEL_") and text.strip():
            os.environ[name] = Secret(name, text.strip()).reveal() if name in SECRETS else text


def _start(traces: tuple[str, ...], measures: tuple[str, ...]) -> None:
    from opentelemetry import metrics as metrics_api
    from opentelemetry import trace as trace_api
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider

    os.environ.setdefault("OTEL_SERVICE_NAME", NAME)
    resource = Resource.create()
    if traces:
        tracers = trace_api.get_tracer_provider()
        if not isinstance(tracers, TracerProvider):
            tracers = _tracers(resource)
        _providers.append(tracers)
        tracing.switch_on(tracers.get_tracer(NAME))
    if measures:
        meters = metrics_api.get_meter_provider()
        if not isinstance(meters, MeterProvider):
            meters = MeterProvider(_readers(measures), resource)
        _providers.append(meters)
        metrics.switch_on(meters.get_meter(NAME))


def _tracers(resource: Any) -> Any:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    made = TracerProvider(resource=resource)
    made.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return made


def _readers(measures: tuple[str, ...]) -> list[Any]:
    global _prometheus
    found: list[Any] = []
    if "otlp" in measures:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

        found.append(PeriodicExportingMetricReader(OTLPMetricExporter()))
    if "prometheus" in measures:
        from opentelemetry.exporter.prometheus import PrometheusMetricReader
        from prometheus_client import CollectorRegistry

        _prometheus = CollectorRegistry()
        found.append(PrometheusMetricReader(scope_info_enabled=False, registry=_prometheus))
    return found


def prometheus_text() -> tuple[bytes, str] | None:
    """The metrics in Prometheus' own format, and its media type; None where they are not asked for."""
    if _prometheus is None:
        return None
    from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

    return generate_latest(_prometheus), CONTENT_TYPE_LATEST


def flush() -> None:
    """Send what waits, within seconds: where the runtime freezes the process it would wait for the next call."""
    providers = list(_providers)
    if not providers and "opentelemetry.sdk.trace" in sys.modules:  # somebody else set up tracing
        from opentelemetry import trace

        providers.append(trace.get_tracer_provider())
    for each in providers:
        force_flush = getattr(each, "force_flush", None)
        if force_flush is not None:
            try:
                force_flush(timeout_millis=_FLUSH_MS)
            except Exception as error:  # the edge: telemetry costs no invocation
                log.warning("telemetry.not_flushed error=%s", type(error).__name__)


def stop() -> None:
    """Send what waits and end the threads, for the end of a process."""
    global _prometheus
    providers, _providers[:] = list(_providers), []
    tracing.switch_off()
    metrics.switch_off()
    _prometheus = None
    for each in providers:
        each.shutdown()
