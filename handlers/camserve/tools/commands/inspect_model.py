"""What can be explained here? Lists the layers of a model or an archive that have a map, and what each costs.

With --image, draws that picture's heatmaps by layer and by method on one contact sheet.
"""

from __future__ import annotations

from collections.abc import Sequence

from camserve.core.errors import ConfigError, RequestError
from camserve.tools.console import Progress, ToolError, fail, report_unforeseen
from camserve.tools.packaging.flags.inspect_model import parse, parser

__all__ = ["main", "parse", "parser"]


def main(argv: Sequence[str]) -> int:
    """Inspects what `argv` names; the exit status."""
    progress = Progress()
    try:
        options = parse(argv)
        # torch takes seconds, and help does without it
        from camserve.tools.packaging.inspected import open_inspected  # noqa: PLC0415
        from camserve.tools.packaging.probe import one_thread  # noqa: PLC0415
        from camserve.tools.reports.inspection.layers import inspect  # noqa: PLC0415

        with one_thread(), open_inspected(options.model, options.keys, progress, options.trust) as inspected:
            inspect(inspected, options, progress)
            if options.fidelity:
                from camserve.tools.reports.inspection.measuring import measure_inspected  # noqa: PLC0415

                measure_inspected(inspected, options, progress)
    except (ToolError, ConfigError, OSError) as error:
        return fail(error)
    except RequestError as error:
        return fail(f"--image: {error.message}")
    except Exception as error:  # noqa: BLE001 the model, its file and a handler's may raise anything
        return report_unforeseen(error)
    return 0
