"""What is remembered of each open page, until it is closed or too many others came."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field

from visllama.inference.attention import Looked
from visllama.inference.chat import Chat
from visllama.release.demo.conversation import ShownTurn

_MOST_SESSIONS, _MOST_CACHES = 64, 4
"""The largest number of pages, and of those whose chat keeps its cache, which fills the device's memory."""


@dataclass
class Session:
    """What is remembered of one open page.

    Attributes:
        pictures: The file that was last chosen, by the tab that it was chosen in.
        looked: Where the words of the last caption looked.
        model_name: The model that the chat is with.
        chat: The chat; None where none was begun.
        messages: What the page shows of it.
    """

    pictures: dict[str, bytes] = field(default_factory=dict)
    looked: Looked | None = None
    model_name: str = ""
    chat: Chat | None = None
    messages: list[ShownTurn] = field(default_factory=list)

    def forget_chat(self) -> None:
        """Begin a new conversation."""
        self.chat, self.messages = None, []


class Sessions:
    """The sessions of all pages, by the name that gradio has for each."""

    def __init__(self) -> None:
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, name: str | None) -> Session:
        """Return a page's session, which is begun where there is none."""
        with self._lock:
            session = self._sessions.setdefault(str(name), Session())
            self._sessions.move_to_end(str(name))
            while len(self._sessions) > _MOST_SESSIONS:
                self._sessions.popitem(last=False)
            return session

    def forget(self, name: str | None) -> None:
        """Forget a page that was closed."""
        with self._lock:
            self._sessions.pop(str(name), None)

    def free_caches(self) -> None:
        """Free the caches of all chats but the last ones; a chat whose cache was freed reads it all again."""
        with self._lock:
            chats = [session.chat for session in self._sessions.values() if session.chat is not None]
        for chat in chats[:-_MOST_CACHES]:
            chat.free_cache()
