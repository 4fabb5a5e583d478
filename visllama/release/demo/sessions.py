"""The memory of each open page, which lasts until the page is closed or too many others were opened."""

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
    """The memory of one open page.

    Attributes:
        pictures: The content of the file that was chosen last, by the tab that it was chosen in.
        looked: The last caption with the attention of its words; None where there is none.
        model_name: The name of the model that the chat is with.
        chat: The chat; None where none was begun.
        messages: The turns of the chat that the page shows.
    """

    pictures: dict[str, bytes] = field(default_factory=dict)
    looked: Looked | None = None
    model_name: str = ""
    chat: Chat | None = None
    messages: list[ShownTurn] = field(default_factory=list)

    def forget_chat(self) -> None:
        """Begin a new conversation."""
        self.chat = None
        # A new list, by which an answer that is still being written sees that its conversation is over.
        self.messages = []


class Sessions:
    """The sessions of all pages, by the name that gradio gives each page."""

    def __init__(self) -> None:
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, name: str | None) -> Session:
        """Return a page's session; a page without one gets a new one."""
        with self._lock:
            session = self._sessions.setdefault(str(name), Session())

            # The page that was used longest ago is the first one, and is forgotten first.
            self._sessions.move_to_end(str(name))
            while len(self._sessions) > _MAX_SESSIONS:
                self._sessions.popitem(last=False)
            return session

    def forget(self, name: str | None) -> None:
        """Forget a page that was closed."""
        with self._lock:
            self._sessions.pop(str(name), None)

    def free_caches(self) -> None:
        """Free the caches of all chats but those used last; a chat without a cache reads its conversation again."""
        # In the order of their last use.
        with self._lock:
            chats = [session.chat for session in self._sessions.values() if session.chat is not None]
        for chat in chats[:-_MAX_CACHES]:
            chat.free_cache()
