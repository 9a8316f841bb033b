"""The loop of a chat: read a line, carry out a command or answer a message."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from gpt2chat.cli.chat import commands, teaching
from gpt2chat.cli.chat.lines import Lines, read_message
from gpt2chat.cli.chat.screen import Screen
from gpt2chat.cli.terminal import Interrupted

if TYPE_CHECKING:
    from gpt2chat.chatbot import GPT2Chatbot
    from gpt2chat.chats import Feedback
    from gpt2chat.reply import StreamingReply


class Talk:
    """A chat with one bot through one reader of lines and one screen."""

    def __init__(self, bot: GPT2Chatbot, name: str, lines: Lines, screen: Screen, feedback: Path | None = None) -> None:
        """Take a bot that talks with the model `name`; `feedback` is where approved and taught answers go."""
        from gpt2chat.reply import Usage

        self.bot, self.lines, self.screen = bot, lines, screen
        self.answers, self.total = 0, Usage()
        self.leaving = False
        self.asked_again = 0  # so often in this chat, which makes another seed each time
        self._interrupts = 0
        self._feedback = feedback
        self.model = name
        self.feedback: Feedback = teaching.feedback_for(name, feedback)

    def run(self) -> int:
        """Talk until the user leaves; return the exit code."""
        while not self.leaving:
            try:
                line = self.read("You: ")
            except EOFError:
                self.screen.say("") if self.screen.interactive else None
                break
            except KeyboardInterrupt:
                self._interrupts += 1
                if self._interrupts > 1:
                    return 128 + signal.SIGINT
                self.screen.say("\nCtrl-C again leaves; so do Ctrl-D and /exit.")
                continue
            self._interrupts = 0
            if line:
                self.handle(line)
        self._guarded(lambda: teaching.offer(self))
        if self.screen.interactive:
            self.screen.say("Goodbye!")
        return 0

    def read(self, prompt: str, default: str = "") -> str:
        """Return a line, or several between triple quotes."""
        if default:
            return self.lines.read(prompt, default).strip()
        return read_message(self.lines, prompt)

    def handle(self, line: str) -> None:
        """Carry out one line; two slashes begin a message with one."""
        if line.startswith("//"):
            self._guarded(lambda: self.ask(line[1:]))
            return
        self._guarded(lambda: None if commands.handle(self, line) else self.ask(line))

    def _guarded(self, act: Callable[[], object]) -> None:
        """Do something. What the user can mend is said in one line, and the chat goes on."""
        from gpt2chat.errors import GPT2ChatError

        try:
            act()
        except GPT2ChatError as error:
            self.screen.say(f"{error}")
        except OSError as error:  # of a file that the user named
            if error.filename is None:
                raise
            self.screen.say(f"{error.filename}: {error.strerror}")
        except (EOFError, KeyboardInterrupt):  # while a command asked for more
            self.screen.say("\nNothing was changed.")
        except Interrupted as interrupt:
            if not self.screen.interactive or interrupt.code != 128 + signal.SIGINT:
                raise
            self.screen.say("\n[interrupted]")

    def ask(self, text: str) -> None:
        """Answer a message; one that cannot be answered leaves an empty answer to those who count lines."""
        from gpt2chat.errors import GPT2ChatError

        try:
            reply = self.bot.stream(text)
        except GPT2ChatError as error:
            self.screen.no_answer(error)
            raise
        self.answer(reply)

    def answer(self, reply: StreamingReply) -> None:
        """Show an answer and count it."""
        try:
            self.screen.answer(reply, self.bot.decoder.runtime.config.n_ctx)
        finally:
            self.answers += 1
            self.total.add(reply.usage)

    def change_model(self, name: str) -> None:
        """Go on in this conversation with another model; on an error with the one there was."""
        from gpt2chat import pretrained

        messages, began = list(self.bot.messages), time.perf_counter()
        teaching.remind(self)  # of what was taught to the model there is
        self.bot.open(name)
        self.bot.messages = messages
        self.model, self.feedback = name, teaching.feedback_for(name, self._feedback)
        if taught := teaching.taught_before(self.bot, self.feedback):
            self.screen.say(taught)
        seconds = time.perf_counter() - began
        self.screen.say(f"{pretrained.describe(self.bot.checkpoint)}; loaded in {seconds:.1f} s")
