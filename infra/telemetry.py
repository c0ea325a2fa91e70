"""Logs and measurements on Lambda: Powertools behind the standard `logging` and the `Telemetry` port."""

import logging
import sys
from typing import Final

from aws_lambda_powertools.logging.formatter import LambdaPowertoolsFormatter
from aws_lambda_powertools.metrics import EphemeralMetrics, MetricUnit

from channel.ports import TurnFacts
from infra.logs import log_to
from infra.settings import Settings


METRICS_NAMESPACE: Final = "lambda-responses"


def log_as_json(settings: Settings) -> None:
    """Make the project's loggers write JSON lines to stdout, where Lambda collects them."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(LambdaPowertoolsFormatter(service=settings.service, use_rfc3339=True))
    log_to(handler, settings)


class PowertoolsTelemetry:
    """Writes one CloudWatch embedded-metric line per turn; the dimensions are service and agent."""

    def __init__(self, *, service: str, agent: str) -> None:
        """Take the dimensions."""
        self._service = service
        self._agent = agent

    def turn_finished(self, facts: TurnFacts, /) -> None:
        """Write the line."""
        # Ephemeral, because plain Metrics is one per process and turns may run side by side.
        metrics = EphemeralMetrics(namespace=METRICS_NAMESPACE, service=self._service)
        metrics.add_dimension("agent", self._agent)
        metrics.add_metric(facts.outcome.capitalize(), MetricUnit.Count, 1)
        metrics.add_metric("ResponseDuration", MetricUnit.Milliseconds, facts.duration_ms)
        metrics.add_metric("InputTokens", MetricUnit.Count, facts.input_tokens)
        metrics.add_metric("OutputTokens", MetricUnit.Count, facts.output_tokens)
        if facts.first_event_ms is not None:
            metrics.add_metric("TimeToFirstEvent", MetricUnit.Milliseconds, facts.first_event_ms)
        metrics.flush_metrics()
