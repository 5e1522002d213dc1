"""What a full fine-tune changed in its base: the spectrum of every weight's update."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from lora_lab.errors import LoraLabError
from lora_lab.tui import bindings
from lora_lab.tui.base_dialog import ask_for_base
from lora_lab.tui.detail.analysis_view import AnalysisView
from lora_lab.tui.detail.tables import ReportTable
from lora_lab.tui.screens import LabScreen

if TYPE_CHECKING:
    from textual.app import ComposeResult
    from textual.binding import BindingType

    from lora_lab.domain.library import LibraryEntry
    from lora_lab.tui.app import LoraLabApp
    from lora_lab.tui.export import Copied, ExportDocument
    from lora_lab.tui.messages import JobUpdated

_ANALYSIS = "intrinsic"


def open_fine_tune(lab: LoraLabApp, entry: LibraryEntry) -> None:
    """Ask which base the model of `entry` came from, then show what changed."""

    def show(base: str) -> None:
        lab.push_screen(FineTuneScreen(base, entry.path, entry.name))

    ask_for_base(lab, entry.name, None, entry.path, show)


class FineTuneScreen(LabScreen, inherit_bindings=False):
    """A full fine-tune against its base.

    Parameters
    ----------
    base, finetuned : locators
    name : of the fine-tune
    """

    HELP_TITLE = "Fine-tune"
    HELP = "The update W_ft − W₀ of every weight: its singular values, and what a LoRA of each rank would leave out."

    BINDINGS: ClassVar[list[BindingType]] = [
        *bindings.of_screen(),
        bindings.key("m", "next_table", "Table", "Show the report's next table", id="finetune.table", show=True),
        bindings.key("w", "next_curve", "Curve", "Draw the other curves of the row", id="finetune.curve", show=True),
    ]

    def __init__(self, base: str, finetuned: str, name: str) -> None:
        super().__init__(f"fine-tune {name}  against  {base}")
        self.models = (base, finetuned)
        self._name = name

    def compose_body(self) -> ComposeResult:
        """One analysis."""
        analysis = self.lab.session.registry.analyses[_ANALYSIS]
        yield AnalysisView(analysis, self.models[1], base=None, base_model=None, before=self.models[:1])

    @property
    def view(self) -> AnalysisView:
        """What is shown."""
        return self.query_one(AnalysisView)

    def on_mount(self) -> None:
        """Begin as soon as jobs can be given."""
        super().on_mount()
        self.view.table.focus()
        self.jobs_ready()

    def jobs_ready(self) -> None:
        """Ask for the spectra."""
        desk = self.open_desk()
        if desk is None:
            return
        try:
            self.view.begin(desk)
        except LoraLabError as error:
            self.lab.say(str(error), severity="error")
        self.lab.refresh_job_status()

    def on_job_updated(self, message: JobUpdated) -> None:
        """Take in what our own job tells."""
        super().on_job_updated(message)
        if self.desk is not None:
            self.view.take(message.event, self.desk)

    def unavailable(self, action: str, parameters: tuple[object, ...]) -> str | None:
        """Say what needs a report."""
        if action in ("next_table", "next_curve"):
            return self.view.unavailable(action, parameters)
        return super().unavailable(action, parameters)

    def action_next_table(self) -> None:
        """Show the next table."""
        self.view.next_table()

    async def action_next_curve(self) -> None:
        """Draw the curves that have another axis."""
        await self.view.next_curve()

    def action_rescan(self) -> None:
        """Compute it again."""
        self.view.reset()
        self.jobs_ready()

    def copy_value(self) -> Copied | None:
        """The row under the cursor."""
        return self.query_one(ReportTable).copied()

    def export_document(self) -> ExportDocument | None:
        """The table that is shown."""
        return self.view.table.document(f"{self._name}-{_ANALYSIS}") if self.view.report else None
