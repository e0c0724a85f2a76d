"""The kinds of metrics."""

import enum


class MetricTypes(enum.Enum):
    """As a configuration of metrics spells them."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"
