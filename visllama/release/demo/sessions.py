"""Keep the memory of each open page, which lasts until the page is closed or too many others were opened."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field

from visllama.inference.attention import Looked
from visllama.inference.chat import Chat
from visllama.release.demo.conversation import ShownTurn

_MAX_SESSIONS = 64
"""The largest number of pages that are remembered."""
_MAX_CACHES = 4
"""The largest number of pages whose chat keeps its cache, which fills the device's memory."""


@dataclass
class Session:
    """The memory of one open page in a visitor's browser.

    Attributes:
        pictures: The content of the picture's file that was chosen last in a tab, under "caption" or "compare".
        looked: The last caption with the attention of its words; None if there is none.
        model_name: The name of the model that the chat is with; empty before the first answer.
        chat: The chat with the model; None if none was begun.
        messages: The turns of the chat that the page shows, the first one first.
    """

    pictures: dict[str, bytes] = field(default_factory=dict)
    looked: Looked | None = None
    model_name: str = ""
    chat: Chat | None = None
    messages: list[ShownTurn] = field(default_factory=list)

    def forget_chat(self) -> None:
        """Delete the conversation of the page, so that the next question begins a new one."""
        self.chat = None
        # A new list, by which an answer that is still being written sees that its conversation is over.
        self.messages = []


class Sessions:
    """The memories of all open pages, found by gradio's names of the pages; the 64 that were used last are kept."""

    def __init__(self) -> None:
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, name: str | None) -> Session:
        """Return the memory of a page, which now counts as used last; a page without one gets a new one.

        Args:
            name: gradio's name of the page (`request.session_hash`).
        """
        with self._lock:
            session = self._sessions.setdefault(str(name), Session())

            # The page that was used longest ago is the first one, and is forgotten first.
            self._sessions.move_to_end(str(name))
            while len(self._sessions) > _MAX_SESSIONS:
                self._sessions.popitem(last=False)
            return session

    def forget(self, name: str | None) -> None:
        """Delete the memory of a page; for an unknown name, do nothing.

        Args:
            name: gradio's name of the page (`request.session_hash`).
        """
        with self._lock:
            self._sessions.pop(str(name), None)

    def free_caches(self) -> None:
        """Free the device's memory that chats hold for their next answers, except for the four chats used last.

        A chat without it stays usable: it reads its whole conversation again.
        """
        # In the order of their last use.
        with self._lock:
            chats = [session.chat for session in self._sessions.values() if session.chat is not None]
        for chat in chats[:-_MAX_CACHES]:
            chat.free_cache()
