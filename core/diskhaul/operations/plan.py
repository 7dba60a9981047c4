"""Planning an export: everything up to the refusals, without locks and hook scripts."""

from __future__ import annotations

from ..feedback import Feedback
from ..model import Node
from ..options import ExportOptions
from ..records import Plan
from .base import Operation, RunContext
from .export import ExportOperation


class PlanOperation(Operation[Plan]):
    """Answers with the plan that an export would follow now. It may have changed by the time the export runs."""

    name = "plan"

    def __init__(self, context: RunContext, instance: str, node: str, options: ExportOptions) -> None:
        super().__init__(context)
        self._export = ExportOperation(context, instance, node, options)

    def check_arguments(self) -> None:
        self._export.check_arguments()

    def expand_names(self) -> None:
        self._export.expand_names()

    def home(self) -> Node:
        return self._export.home()

    def check_prerequisites(self) -> None:
        self._export.check_prerequisites()

    def execute(self, feedback: Feedback) -> Plan:
        return self._export.plan
