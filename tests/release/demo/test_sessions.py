"""Pages are remembered until they are closed or many others came; few chats keep their cache."""

from __future__ import annotations

from visllama.release.demo.sessions import Sessions


class Chat:
    def __init__(self) -> None:
        self.has_cache = True

    def free_cache(self) -> None:
        self.has_cache = False


def test_a_session_is_found_again_until_it_is_forgotten():
    sessions = Sessions()
    first = sessions.find("a")
    assert sessions.find("a") is first and sessions.find("b") is not first
    sessions.forget("a")
    sessions.forget("a")
    assert sessions.find("a") is not first


def test_the_oldest_make_room():
    sessions = Sessions()
    first, second = sessions.find("0"), sessions.find("1")
    for number in range(2, 64):
        sessions.find(str(number))
    assert sessions.find("0") is first
    sessions.find("64")
    assert sessions.find("0") is first and sessions.find("1") is not second


def test_few_chats_keep_their_caches():
    sessions = Sessions()
    chats = [Chat() for _ in range(6)]
    for number, chat in enumerate(chats):
        sessions.find(str(number)).chat = chat
    sessions.find("0")
    sessions.free_caches()
    assert [chat.has_cache for chat in chats] == [True, False, False, True, True, True]
