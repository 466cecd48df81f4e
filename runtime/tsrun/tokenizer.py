"""The tokenizer of an artifact: text and chat messages to token ids, and ids back to text."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tsrun.artifact import Artifact
from tsrun.encoder import read_encoder
from tsrun.errors import ArtifactError, RequestError
from tsrun.token_bytes import TokenBytes

if TYPE_CHECKING:
    from tsrun.chat_template import ChatTemplate, Message

_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")


class Tokenizer:
    """Reads a folder with tokenizer.json and, perhaps, vocabulary.safetensors and tokenizer_config.json. chat_template: instead of the
    checkpoint's own."""

    def __init__(self, folder: Path, chat_template: str | None = None) -> None:
        self._folder = folder
        self._encoder = read_encoder(folder)
        config = _read_config(folder / "tokenizer_config.json")
        self._add_bos: bool | None = config.get("add_bos_token")
        self._add_eos: bool | None = config.get("add_eos_token")
        self._special_tokens = {name: text for name in _SPECIAL_TOKENS if (text := _content(config.get(name))) is not None}
        self._template_source = chat_template or _default_template(config.get("chat_template"))

    @classmethod
    def of(cls, artifact: Artifact) -> Tokenizer:
        if not artifact.has_tokenizer:
            what = "the artifact has no tokenizer, since its checkpoint had none"
            raise ArtifactError(str(artifact.path), what, "compile a checkpoint that holds tokenizer.json")
        return cls(artifact.path / "tokenizer")

    @property
    def template_source(self) -> str | None:
        """The chat template, None where the checkpoint has none."""
        return self._template_source

    def encode(self, text: str) -> list[int]:
        """Ids of a text that begins a sequence. Without `add_bos_token` the tokenizer's own post-processor decides."""
        ids = self._encode(text, add_special_tokens=self._add_bos is None)
        if self._add_bos:
            ids.insert(0, self._special("bos"))
        return ids

    def encode_whole(self, text: str) -> list[int]:
        """Ids of a text that nothing follows, with all that the tokenizer puts around one: embedding models read their last token there."""
        ids = self._encode(text, add_special_tokens=True)
        if self._add_bos and ids[:1] != [bos := self._special("bos")]:
            ids.insert(0, bos)
        if self._add_eos and ids[-1:] != [eos := self._special("eos")]:
            ids.append(eos)
        return ids

    def encode_part(self, text: str) -> list[int]:
        """Ids of a text that goes on with one: nothing is put before or after it."""
        return self._encode(text, add_special_tokens=False)

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a conversation up to where the assistant answers; a bos is there only if the template writes it."""
        return self.encode_rendered(self.render_chat(messages))

    def encode_rendered(self, text: str) -> list[int]:
        """Ids of a text that has what special tokens it needs, or of a part of one."""
        return self._encode(text, add_special_tokens=False)

    def render_chat(self, messages: Sequence[Message], tools: Sequence[Any] = (), variables: Mapping[str, Any] | None = None) -> str:
        return self._template.render(messages, tools, variables or {})

    @cached_property
    def _template(self) -> ChatTemplate:
        if self._template_source is None:
            raise RequestError(
                str(self._folder), "the checkpoint has no chat template", "give a prompt as it is, or serve it with --chat-template"
            )
        from tsrun.chat_template import ChatTemplate  # late: no start needs jinja2

        return ChatTemplate(self._template_source, self._special_tokens)

    def token_bytes(self) -> TokenBytes:
        """What each token adds to a text. RequestError where the tokenizer is of a kind that does not say."""
        found = self._encoder.token_bytes()
        if found is None:
            what = "the words of this tokenizer have no bytes of their own, so that no grammar can be held against them"
            raise RequestError("constraint", what, "leave it out")
        return found

    def decode(self, ids: Sequence[int], shown: Collection[int] = ()) -> str:
        """Text without special tokens, but for those that are to be shown."""
        return self._encoder.decode(ids, shown)

    @property
    def special_ids(self) -> frozenset[int]:
        return self._encoder.special_ids

    def special_ids_of(self, texts: Collection[str]) -> tuple[int, ...]:
        """Those of the texts that are special tokens."""
        return tuple(index for index in map(self.special_id, texts) if index is not None)

    def special_id(self, text: str) -> int | None:
        """Of a text that is a special token."""
        index = self._encoder.id_of(text)
        return index if index in self.special_ids else None

    def _encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError as error:  # bytes of a command line that are no text come as halves of pairs
            raise RequestError("prompt", f"is not UTF-8 at character {error.start}", "give a text that is") from None
        return self._encoder.encode(text, add_special_tokens=add_special_tokens)

    def _special(self, name: Literal["bos", "eos"]) -> int:
        token = self._special_tokens.get(f"{name}_token")
        found = None if token is None else self._encoder.id_of(token)
        if found is None:
            file = str(self._folder / "tokenizer_config.json")
            what = f"add_{name}_token is true, but {name}_token is not in the vocabulary"
            raise ArtifactError(file, what, "mend the checkpoint and compile it again")
        return found


def _read_config(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ArtifactError(str(file), f"is not JSON ({error})", "compile the artifact again") from None
    return config if isinstance(config, dict) else {}


def _content(token: Any) -> str | None:
    """A special token is a text, or a record around it."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _default_template(template: Any) -> str | None:
    """A checkpoint may name several templates; the one named `default` is for plain conversations."""
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None
