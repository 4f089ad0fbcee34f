"""Tell about a finished review: telemetry, the audit file, and the plugins that observe."""

from __future__ import annotations

import logging

from ttsa_guard.audit import AuditSink
from ttsa_guard.plugins import Plugins
from ttsa_guard.record import AuditRecord
from ttsa_guard.telemetry import report

log = logging.getLogger(__name__)


def publish(record: AuditRecord, sink: AuditSink | None, plugins: Plugins) -> None:
    """Tell all observers about a finished review.

    A fault of one observer must not keep the answer back, let another answer out, or keep the
    record from the other observers. Nothing here waits, so a cancellation that an observer raises
    is its own and not one of the review.
    """
    report(record)
    if sink:
        try:
            sink.write(record)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            log.error("the audit record could not be written: %s", type(error).__name__)
    observers = [hook.plugin for hook in plugins.manager.hook.ttsa_guard_finished.get_hookimpls()]
    for observer in observers:
        tell = plugins.manager.subset_hook_caller(
            "ttsa_guard_finished", [o for o in observers if o is not observer]
        )
        try:
            tell(record=record)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            log.error("an observer plugin failed with %s", type(error).__name__)
