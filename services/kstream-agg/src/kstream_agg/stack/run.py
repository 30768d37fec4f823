"""The supervisor process: composition root of a running stack."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kstream_agg.core.errors import StackError
from kstream_agg.stack.layout import Layout
from kstream_agg.stack.plan import plan_context, read_plan
from kstream_agg.stack.profiles import build_components, select_names
from kstream_agg.stack.supervisor import supervise

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["run_supervisor"]


def run_supervisor(data_dir: Path) -> None:
    """Run the stack that `stack up` has planned for a data folder, until a signal ends it.

    Raises:
        StackError: The folder has no plan, or another supervisor has it.
    """
    layout = Layout(data_dir)
    plan = read_plan(layout.plan)
    if plan is None:
        raise StackError(f"{data_dir} has no stack", remedy="start one: kstream-agg stack up")
    context = plan_context(plan, layout)
    components = build_components(select_names(plan.profile, plan.only), context)
    supervise(layout, plan.profile, components, context.restart)
