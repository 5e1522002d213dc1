"""Combining, resizing and extracting from the library: preview, refusals, inputs, methods, outcome."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from builders import contents, factors, write_adapter
from textual.widgets import Input, Static
from tui.combining.driving import TURNS, Driven, opened
from tui.fakes import FakeJobs, reached, until

from lora_lab import Session
from lora_lab.domain.parameters import Parameter, ParameterKind
from lora_lab.tui.app import LoraLabApp
from lora_lab.tui.combining.fields import ChoiceField
from lora_lab.tui.combining.pick import Pick
from lora_lab.tui.combining.recipe import Source
from lora_lab.tui.combining.screen import CombineScreen
from lora_lab.tui.compare.screen import CompareScreen
from lora_lab.tui.confirm import Confirm
from lora_lab.tui.detail.screen import DetailScreen
from lora_lab.tui.jobs_screen import JobsScreen
from lora_lab.tui.palette import actions_of
from lora_lab.tui.widgets.pane import Pane


async def confirm(driven: Driven, key: str) -> None:
    """Go, and answer the question."""
    await driven.pilot.press("ctrl+g")
    await until(driven.pilot, lambda: isinstance(driven.app.screen, Confirm))
    await driven.pilot.press(key)
    await driven.pilot.pause()


async def picking(driven: Driven) -> None:
    """Ask for one more input."""
    await driven.pilot.press("a")
    await until(driven.pilot, lambda: isinstance(driven.app.screen, Pick))


def meeting(adapters: list[str], strengths: list[float]) -> Any:
    """What the session says of them."""
    parameters = {"strength": strengths, "sign_rows": 64}
    return Session(cache=False).analyze("interference", adapters, parameters=parameters).to_json()["totals"]


async def test_the_preview_has_the_numbers_of_the_session(here: Path, size: tuple[int, int]) -> None:
    """Of the dry run and of what the inputs do to each other, with the strengths that are typed."""
    async with opened("one", "two", size=size) as driven:
        await driven.pilot.press("backspace", "0", ".", "5")
        await driven.choose("svd")
        await driven.fill(output="out", rank="3")
        made = Session(cache=False).combine(
            ["one", "two"], strengths=[0.5, 1], method="svd", rank=3, output="x", dry_run=True
        )
        totals = made.to_json()["totals"]
        assert "4 + 2 → 3" in driven.text
        assert "✓ one base   ✓ shapes fit" in driven.text
        assert f"{totals['relative_error']:.4g}" in driven.said
        assert f"{totals['parameters']}" in driven.said.replace(" ", "")
        met = meeting(["one", "two"], [0.5, 1.0])
        assert f"{met['cosines'][0][1]:.3g}" in driven.said
        assert f"{100 * met['sign_conflict']:.1f} %" in driven.said
        assert driven.command == "lora-lab combine one two --method svd --strength 0.5 --strength 1 --rank 3 -o out"
        assert driven.note == "^g writes out"
        if size[1] >= 32:
            assert driven.wizard.table.is_on_screen
        assert list(driven.wizard.table.rows) == [row["module"] for row in made.table("modules").rows]


async def test_what_is_typed_is_never_written_over(here: Path) -> None:
    """Drawn while more has been typed than has been looked at, as keys that come at once bring about."""
    async with opened("one", "two") as driven:
        entry = driven.wizard.sources.rows[0].entry
        entry.value = "0.25"
        driven.wizard.sources.draw()
        assert entry.value == "0.25"
        await driven.answer()
        assert entry.value == "0.25"
        assert "--strength 0.25 --strength 1" in driven.command


async def test_what_is_wrong_is_marked_and_stops_it(here: Path) -> None:
    """The reason under the field and behind the key; put right it goes on."""
    async with opened("one", "two") as driven:
        wizard = driven.wizard
        await driven.choose("ties")
        await driven.fill(setting_density="3")
        line = wizard.setting_lines[0]
        assert line.fields[0].control.has_class("-wrong")
        assert "from 0 to 1" in str(line.query_one(".field--reason", Static).content)
        assert "density" in driven.refusal()
        await driven.press("ctrl+g")
        assert driven.app.screen is wizard
        assert driven.waiting() == []
        assert driven.command == ""
        await driven.fill(setting_density="0.3", rank="2")
        assert not line.fields[0].control.has_class("-wrong")
        assert driven.refusal() == ""
        assert "--param density=0.3" in driven.command
        wizard.sources.rows[1].entry.value = "-"
        await driven.answer()
        assert wizard.sources.rows[1].entry.has_class("-wrong")
        assert "finite number" in driven.refusal()
        wizard.sources.rows[1].entry.value = "1"
        await driven.fill(output="")
        assert "no name" in driven.refusal()
        assert "shapes fit" in driven.said
        await driven.fill(output="nowhere/out")
        assert "is not there" in driven.refusal()


async def typed_over(driven: Driven) -> Any:
    """The job of a preview that has begun, while something else has been typed."""
    await driven.pilot.press("2")
    await until(driven.pilot, lambda: bool(driven.waiting()))
    late = next(job for job in driven.waiting() if job.request.call == "combine")
    driven.app.jobs.begin(late)  # type: ignore[attr-defined]
    await driven.pilot.press("backspace", "3")
    return late


async def test_an_obsolete_preview_never_lands(here: Path) -> None:
    """What was asked before the last key is not shown, and cannot be run."""
    async with opened("one", "two") as driven:
        late = await typed_over(driven)
        assert driven.wizard.plan is None
        driven.app.jobs.finish(late, Session(cache=False).combine(**late.request.arguments))  # type: ignore[attr-defined]
        await driven.pilot.pause()
        assert driven.wizard.plan is None
        assert "not worked out" in driven.refusal()
        assert driven.wizard.query_one("#combine-said").has_class("-stale")
        await driven.answer()
        plan = driven.wizard.plan
        assert plan is not None
        assert plan.to_json()["arguments"]["strengths"][0] == 3.0


async def test_what_takes_too_long_is_cancelled(here: Path) -> None:
    """A second after it is no longer wanted."""
    async with opened("one", "two") as driven:
        late = await typed_over(driven)
        await until(driven.pilot, lambda: late.state == "cancelled", turns=TURNS)
        await driven.answer()
        assert driven.wizard.plan is not None


async def test_what_does_not_fit_is_said_in_the_preview(here: Path) -> None:
    """In the sentence of the command line, and it cannot be run."""
    write_adapter(here / "two", factors({"model.layers.2.self_attn.q_proj": (8, 8)}))
    async with opened("one", "two") as driven:
        assert "✗" in driven.said
        assert "expected one shape" in driven.said
        assert "expected one shape" in driven.refusal()
        await driven.press("ctrl+g")
        assert driven.app.screen is driven.wizard


async def test_another_base_is_told(here: Path) -> None:
    """In the title, since the sentence may be below the fold, and instead of the tick."""
    write_adapter(here / "two", factors(seed=2), base_model_name_or_path="elsewhere")
    async with opened("one", "two") as driven:
        assert "⚠ 1 warning" in driven.text
        assert "one base" not in driven.said
        assert "name different bases" in driven.said


async def test_what_is_there_is_replaced_after_a_yes(here: Path) -> None:
    """No keeps it; yes replaces it; an input is never replaced."""
    (here / "out").mkdir()
    (here / "out" / "mine.txt").write_text("mine")
    async with opened("one", "two") as driven:
        await driven.fill(output="out")
        assert driven.note == "^g replaces, after a yes, out"
        await confirm(driven, "n")
        assert driven.app.screen is driven.wizard
        assert (here / "out" / "mine.txt").read_text() == "mine"
        await confirm(driven, "y")
        outcome = await driven.outcome()
        assert outcome.report is not None
        assert "mine.txt" not in contents(here / "out")
        await driven.press("q")
        assert driven.note == "^g replaces, after a yes, out"
        await driven.fill(output="one")
        assert "would be replaced" in driven.said
        assert driven.wizard.plan is None
    assert contents(here / "one").keys() == {"adapter_config.json", "adapter_model.safetensors"}


async def test_dora_gets_its_base(here: Path) -> None:
    """The one of the library that it names; what it does to it is then the change that is combined."""
    tensors = factors(seed=3)
    for name in list(tensors):
        if name.endswith("lora_B.weight"):
            rows = tensors[name].shape[0]
            tensors[name.replace("lora_B.weight", "lora_magnitude_vector")] = torch.linspace(1, 2, rows)
    write_adapter(here / "three", tensors, use_dora=True)
    async with opened("one", "three") as driven:
        await until(driven.pilot, lambda: "--base base" in driven.command, turns=TURNS)
        await driven.answer()
        assert driven.refusal() == ""
        assert "DoRA of 'three'" in driven.said
        await driven.fill(base="")
        assert "DoRA" in driven.refusal()


async def test_inputs_are_added_ordered_and_taken_out(here: Path) -> None:
    """By keys alone, from the library and by path; the letters go with the places."""
    write_adapter(here / "three", factors(seed=3))
    async with opened("one", "two") as driven:
        await picking(driven)
        assert "three" in driven.text
        await driven.press("enter")
        assert driven.sources == ["one", "two", "three"]
        await driven.press("backspace", "2", "K")
        assert driven.command.startswith("lora-lab combine one three two")
        assert "--strength 1 --strength 2 --strength 1" in driven.command
        await driven.press("J", "K", "up", "d")
        assert driven.sources == ["three", "two"]
        await picking(driven)
        await driven.press("tab", *"gone", "enter")
        await until(driven.pilot, lambda: "does not exist" in driven.text, turns=TURNS)
        await picking(driven)
        await driven.press("tab", *"org/name", "enter")
        assert isinstance(driven.app.screen, Confirm)
        await driven.press("n", "escape")
        assert driven.sources == ["three", "two", "gone"]
        for _ in range(3):
            await driven.press("d")
        assert driven.sources == []
        assert "no input yet" in driven.text
        assert "there is no input" in driven.refusal()


async def test_the_other_operations_from_one(here: Path) -> None:
    """What is marked goes along; what an operation does not read is hidden and disturbs nothing."""
    async with opened("one", "two") as driven:
        wizard = driven.wizard
        wizard.query_one("#combine-operation").focus()
        await driven.press("right")
        assert wizard.operation == "resize"
        assert not wizard.methods.is_on_screen
        assert "how far to go" in driven.said
        await driven.fill(energy="0.5")
        assert "lora-lab resize one --energy 0.5" in driven.command
        await driven.press("left")
        assert "--method linear --energy 0.5" in driven.command
        await driven.press("left")
        assert "model before training is missing" in driven.said
        await driven.fill(base="base", finetuned="tuned", output="out")
        assert driven.command == "lora-lab extract base tuned --energy 0.5 -o out"
        assert driven.refusal() == ""
        assert wizard.unavailable("methods", ()) == "extract has one way"


async def test_one_is_resized_and_compared(here: Path) -> None:
    """It is one adapter, so that is what is offered; the rank is asked for."""
    async with opened("one") as driven:
        assert driven.wizard.operation == "resize"
        await driven.press("2")
        assert "4 → 2" in driven.said
        assert driven.command == "lora-lab resize one --rank 2 -o one-resized"
        await driven.pilot.press("ctrl+g")
        outcome = await driven.outcome()
        assert outcome.report is not None
        await driven.pilot.press("v")
        await until(driven.pilot, lambda: isinstance(driven.app.screen, CompareScreen))
        assert isinstance(driven.app.screen, CompareScreen)
        assert driven.app.screen.compared[:2] == ("one-resized", "one")


async def test_a_fine_tune_is_extracted_and_opened(here: Path) -> None:
    """The other model is taken for its base; the result is an adapter, of which there is none to compare with."""
    async with opened("tuned") as driven:
        assert driven.wizard.operation == "extract"
        assert driven.command == "lora-lab extract base tuned -o tuned-lora"
        await driven.press("2")
        assert "--rank 2" in driven.command
        assert driven.refusal() == ""
        await driven.pilot.press("ctrl+g")
        outcome = await driven.outcome()
        assert outcome.report is not None
        assert "made of models" in (outcome.unavailable("versus", ()) or "")
        await driven.pilot.press("o")
        await until(driven.pilot, lambda: isinstance(driven.app.screen, DetailScreen))
        assert isinstance(driven.app.screen, DetailScreen)
        assert driven.app.screen.locator == "tuned-lora"


async def test_the_table_of_methods_chooses_one(here: Path) -> None:
    """Every method has its row, with the numbers of the session; enter takes it; nothing is asked twice."""
    async with opened("one", "two") as driven:
        wizard = driven.wizard
        await driven.fill(rank="2")
        await driven.press("m")
        assert wizard.table.has_focus
        await driven.pilot.press("e")
        await until(driven.pilot, lambda: wizard.compared.has_focus and bool(driven.waiting()))
        assert "working it out" in driven.note
        assert await driven.answer() == ["compare_methods"]
        wanted = Session(cache=False).compare_methods(["one", "two"], rank=2).table("methods").rows
        assert list(wizard.compared.rows.values()) == [dict(row) for row in wanted]
        assert wizard.compared.cursor_key == "linear"
        wizard.compared.move_to("ties")
        await driven.press("enter")
        assert wizard.methods.has_focus
        assert "--method ties" in driven.command
        await driven.pilot.press("e")
        assert await driven.answer() == []
        assert wizard.compared.cursor_key == "ties"
        await driven.press("escape")
        assert not wizard.compared.display
        assert driven.app.screen is wizard


class Strange:
    """A method that declares one parameter of each kind."""

    id = "strange"
    title = "Strange"
    summary = "It takes one of everything."
    reference = "nobody, 2020"
    is_low_rank = True
    parameters = (
        Parameter("steps", "How many", ParameterKind.INTEGER, 4, minimum=1),
        Parameter("share", "How much", ParameterKind.NUMBER, None, 0.0, 1.0),
        Parameter("is_fast", "Whether", ParameterKind.BOOLEAN, True),
        Parameter("label", "What", ParameterKind.TEXT, "plain"),
        Parameter("mode", "Which", ParameterKind.CHOICE, "b", choices=("a", "b", "c")),
        Parameter("level", "Each", ParameterKind.NUMBER, None, is_repeatable=True),
    )


async def test_parameters_of_a_plugin_are_drawn(here: Path, size: tuple[int, int]) -> None:
    """From their declaration alone, with its range, checked by it, and given on as they are typed."""
    session = Session(cache=False)
    session.registry.methods["strange"] = Strange()  # type: ignore[index]
    async with opened("one", "two", size=size, session=session) as driven:
        wizard = driven.wizard
        wizard.methods.choose("strange")
        await driven.pilot.pause()
        shown = {field.id: field for line in wizard.setting_lines for field in line.fields}
        assert list(shown) == [f"setting:{parameter.id}" for parameter in Strange.parameters]
        assert shown["setting:steps"].hint == "≥ 1"
        assert shown["setting:share"].hint == "0…1"
        for name in ("is_fast", "mode"):
            assert isinstance(shown[f"setting:{name}"].control, ChoiceField)
        assert wizard.recipe.changed_settings() == {}
        shown["setting:is_fast"].control.focus()
        await driven.pilot.press("right")
        shown["setting:label"].control.focus()
        await driven.pilot.pause()
        assert str(wizard.query_one("#combine-about", Static).content) == "What"
        await driven.pilot.press("end", "q", " ", "x")
        for name, value in {"steps": "2", "mode": "c", "level": "0.5 1"}.items():
            shown[f"setting:{name}"].control.value = value  # type: ignore[attr-defined]
        await driven.pilot.pause()
        assert wizard.recipe.changed_settings() == {
            "steps": ["2"], "is_fast": ["false"], "label": ["plainq x"], "mode": ["c"], "level": ["0.5", "1"],
        }  # fmt: skip
        assert "--param 'label=plainq x' --param mode=c --param level=0.5 --param level=1" in driven.command
        shown["setting:steps"].control.value = "0"  # type: ignore[attr-defined]
        await driven.pilot.pause()
        assert list(wizard.recipe.faults()) == ["setting:steps"]


async def test_where_it_can_be_opened_from(here: Path) -> None:
    """4 everywhere: with what is compared, or shown; again, it goes back to the wizard as it was left."""
    app = LoraLabApp(
        {"state": False}, ["one", "two"], session=Session(cache=False), jobs=FakeJobs  # type: ignore[arg-type]
    )  # fmt: skip
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: isinstance(app.screen, CompareScreen) and app.is_measuring, turns=TURNS)
        await pilot.press("4")
        wizard = await reached(pilot, CombineScreen)
        assert [one.locator for one in wizard.sources.sources] == ["one", "two"]
        wizard.query_one("#combine-operation").focus()
        await pilot.press("7")
        await until(pilot, lambda: isinstance(app.screen, JobsScreen))
        await pilot.press("4")
        await until(pilot, lambda: app.screen is wizard)
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, CompareScreen))
        app.open_detail("two")
        await until(pilot, lambda: isinstance(app.screen, DetailScreen) and app.screen.adapter is not None)
        await pilot.press("4")
        await until(pilot, lambda: isinstance(app.screen, CombineScreen))
        assert isinstance(app.screen, CombineScreen)
        assert app.screen.recipe.locators == ["two"]
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, DetailScreen))
        app.go_home()
        await pilot.press("7", "4")
        await pilot.pause()
        assert isinstance(app.screen, JobsScreen)


async def test_what_is_copied(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command from any field; the row where a table has the focus."""
    async with opened("one", "two", size=(120, 36)) as driven:
        taken: list[str] = []
        monkeypatch.setattr(driven.app, "copy_to_clipboard", taken.append)
        driven.wizard.query_one("#combine-output Entry", Input).focus()
        await driven.press("ctrl+y")
        assert taken == ["lora-lab combine one two --method linear -o combined"]
        await driven.press("ctrl+t", "y")
        assert taken[-1].startswith("module\t")
        document = driven.wizard.export_document()
        assert document is not None
        assert len(document.rows) == 3


@pytest.mark.parametrize("room", [(60, 16), (80, 24), (200, 60)])
async def test_every_pane_has_room(here: Path, room: tuple[int, int]) -> None:
    """At the least size too; with many inputs the last field can still be reached."""
    for number in range(9):
        write_adapter(here / f"more-{number}", factors(seed=number))
    async with opened("one", "two", size=room) as driven:
        for number in range(9):
            await driven.wizard.sources.add(Source(f"more-{number}"))
        await driven.answer()
        for pane in driven.wizard.query(Pane):
            assert pane.content_size.width > 0, pane.id
            assert pane.content_size.height > 0, pane.id
        field = driven.wizard.query_one("#combine-base Entry")
        field.focus()
        await driven.pilot.pause(0.3)
        assert field.is_on_screen
        assert driven.wizard.query_one("#combine-inputs").region.contains_region(field.region)


LEAVES = {"ctrl+q", "q", "1", "2", "3", "7", "b", "escape"}


async def test_every_key(here: Path, size: tuple[int, int]) -> None:
    """Pressed on every pane, nothing falls over; all of them are in the help and in the palette."""
    async with opened("one", "two", size=size) as driven:
        wizard = driven.wizard
        operation = wizard.query_one("#combine-operation")
        entry = wizard.sources.rows[0].entry
        for pane in (operation, entry, wizard.query_one("#combine-output Entry"), wizard.table):
            pane.focus()
            await driven.pilot.pause()
            names = {binding.id for _, binding, *_ in wizard.active_bindings.values()}
            assert {"combine.run", "combine.command", "combine.methods", "help"} <= names
            assert [action for action in actions_of(wizard) if not action.tooltip] == []
            keys = [key for key in wizard.active_bindings if key not in LEAVES]
            for key in keys if pane is operation else [key for key in keys if key in pane._bindings.key_to_bindings]:
                pane.focus()
                await driven.pilot.press(key)
                for _ in range(3):
                    if driven.app.screen is not wizard:
                        await driven.pilot.press("escape")
                assert driven.app.screen is wizard, key
        assert driven.app.is_running
