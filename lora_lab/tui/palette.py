"""The command palette: every action of the screen and of its focused pane, with its key."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from rich.text import Text
from textual.command import DiscoveryHit, Hit, Hits, Provider

from lora_lab.safetext import safe_text
from lora_lab.tui.bindings import key_name

if TYPE_CHECKING:
    from textual.dom import DOMNode
    from textual.screen import Screen


#: Ids of bindings that only move a cursor or the focus.
_MOVES: Final = ("cursor.", "table.", "scroll.", "tree.", "focus.", "options.")
_KEY_WIDTH: Final = 10
_LABEL_WIDTH: Final = 14


class Action(NamedTuple):
    """One thing that can be done now, or the reason why it cannot."""

    node: DOMNode
    action: str
    id: str
    keys: tuple[str, ...]
    label: str
    tooltip: str
    reason: str  # empty when it can be done


def actions_of(screen: Screen[Any]) -> list[Action]:
    """List the actions of the focused pane, of `screen` and of the application, each once with all of its keys."""
    found: dict[tuple[DOMNode, str], Action] = {}
    for active in screen.active_bindings.values():
        binding = active.binding
        if not binding.description:
            continue
        place = (active.node, binding.action)
        name = key_name(binding)
        known = found.get(place)
        if known is not None:
            found[place] = known._replace(keys=(*known.keys, name))
            continue
        found[place] = Action(
            active.node,
            binding.action,
            binding.id or "",
            (name,),
            binding.description,
            active.tooltip,
            "" if active.enabled else why_not(active.node, binding.action) or "not available now",
        )
    return list(found.values())


def why_not(node: DOMNode, action: str) -> str | None:
    """Reason that `node` gives for an action which is not available; None when it gives none."""
    namespace, name, parameters = node.app._parse_action(action, node)
    unavailable = getattr(namespace, "unavailable", None)
    return unavailable(name, parameters) if callable(unavailable) else None


class ActionsProvider(Provider):
    """Actions made from the bindings, so that none can be forgotten; moving about comes last."""

    def _actions(self) -> list[Action]:
        actions = [action for action in actions_of(self.screen) if action.action != "command_palette"]
        return sorted(actions, key=lambda action: action.id.startswith(_MOVES))

    def _line(self, action: Action) -> Text:
        keys = Text(f"{' '.join(action.keys):>{_KEY_WIDTH}}  ", style="bold")
        about = safe_text(f"not now: {action.reason}" if action.reason else action.tooltip)
        room = max(10, self.screen.size.width - _KEY_WIDTH - _LABEL_WIDTH - 12)
        shown = about if len(about) <= room else f"{about[: room - 1]}…"
        return Text.assemble(keys, f"{action.label:<{_LABEL_WIDTH}}  ", (shown, "not bold dim"))

    async def discover(self) -> Hits:
        """Offer everything."""
        for action in self._actions():
            yield DiscoveryHit(self._line(action), partial(self._run, action), text=action.label)

    async def search(self, query: str) -> Hits:
        """Offer what matches in label, key or tooltip."""
        matcher = self.matcher(query)
        for action in self._actions():
            in_label = matcher.match(f"{action.label} {' '.join(action.keys)}")
            score = max(in_label, matcher.match(action.tooltip) * 0.5)
            if score > 0:
                yield Hit(score, self._line(action), partial(self._run, action), text=action.label)

    async def _run(self, action: Action) -> None:
        await self.app.run_action(action.action, action.node)
