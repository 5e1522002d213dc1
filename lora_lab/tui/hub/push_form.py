"""What a person asks a push for: fields and switches, the call that they make, and the command that does the same."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_lab.jobs.model import Call


class PushField(NamedTuple):
    """One line of the form."""

    id: str  # the keyword of the session's method
    label: str
    flag: str
    about: str  # what is shown while it is empty


FIELDS: Final = (
    PushField("repository", "Repository", "", "org/name, or name for one of your own"),
    PushField("revision", "Branch", "--revision", "main; made when it is not there"),
    PushField("base_model", "Base model", "--base-model", "as the files say; or org/name"),
    PushField("licence", "Licence", "--license", "the base's; or one that you know to hold"),
    PushField("message", "Message", "--message", "made from the receipt"),
)
SWITCHES: Final = (
    PushField("public", "public", "--public", "Everyone may see a new repository"),
    PushField("create_pr", "pull request", "--create-pr", "Propose it instead of committing it"),
)


@dataclass(frozen=True)
class PushForm:
    """A filled form.

    Parameters
    ----------
    folder : of the adapter or model
    typed : what stands in each field, by its id
    switched : which switches are on
    session : options of the session that will do it
    """

    call: ClassVar[Call] = "push"
    folder: str
    typed: Mapping[str, str]
    switched: frozenset[str] = frozenset()
    session: Mapping[str, Any] = field(default_factory=dict)

    def missing(self) -> str | None:
        """The sentence that asks for what is not there yet."""
        if not self._value("repository"):
            return f"Repository is empty: {FIELDS[0].about}."
        return None

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of the session's method.

        Examples
        --------
        >>> PushForm("a", {"repository": " me/a "}, frozenset({"public"})).arguments()
        {'folder': 'a', 'repository': 'me/a', 'public': True}
        """
        typed = {one.id: value for one in FIELDS if (value := self._value(one.id))}
        return {"folder": self.folder, **typed, **{one.id: True for one in SWITCHES if one.id in self.switched}}

    def command(self) -> str:
        """The command that does the same, quoted for a shell.

        Examples
        --------
        >>> PushForm("my a", {"repository": "me/a", "revision": "next"}, frozenset({"create_pr"})).command()
        "lora-lab push 'my a' me/a --revision next --create-pr"
        """
        words = ["lora-lab", "push", self.folder]
        for one in FIELDS:
            value = self._value(one.id)
            if value:
                words += [one.flag, value] if one.flag else [value]
        words += [one.flag for one in SWITCHES if one.id in self.switched]
        for host in self.session.get("send_token_to") or ():
            words += ["--send-token-to", str(host)]
        return shlex.join(words)

    def _value(self, name: str) -> str:
        return " ".join(self.typed.get(name, "").split())
