"""Several engines behind one door: one for each GPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, TypeVar

from gpt2chat.engine import Engine
from gpt2chat.errors import ConfigError, EngineFull
from gpt2chat.runtime import Runtime
from gpt2chat.sampling import GenerationConfig
from gpt2chat.steps import Stats
from gpt2chat.streams import Scores, Stream

Given = TypeVar("Given", Stream, Scores, list[Stream])


class Fleet:
    """Gives each request to the engine that has the least to do. All engines have the same model.

    It answers where an `Engine` does; EngineFull is raised when no engine takes a request.
    """

    def __init__(self, engines: Sequence[Engine]) -> None:
        if not engines or len({engine.runtime.config for engine in engines}) > 1:
            raise ConfigError(f"fleet: expected engines of one model, got {len(engines)} of different ones")
        self.engines = list(engines)

    @property
    def streams(self) -> int:
        """How many answers run at a time."""
        return sum(engine.streams for engine in self.engines)

    @property
    def runtime(self) -> Runtime:
        """The network of the first engine, for what is the same in all of them."""
        return self.engines[0].runtime

    def submit(self, prompt: Sequence[int], config: GenerationConfig | None = None, **options: Any) -> Stream:
        """Ask for an answer as `Engine.submit` does."""
        return self._given(lambda engine: engine.submit(prompt, config, **options))

    def submit_many(self, prompt: Sequence[int], config: GenerationConfig, count: int, **options: Any) -> list[Stream]:
        """Ask for several answers to one prompt as `Engine.submit_many` does: one engine gives all of them."""
        return self._given(lambda engine: engine.submit_many(prompt, config, count, **options))

    def score(self, ids: Sequence[int], start: int, top: int = 5, **options: Any) -> Scores:
        """Ask how likely the model finds ids[start:], as `Engine.score` does."""
        return self._given(lambda engine: engine.score(ids, start, top, **options))

    def generate(self, prompt: Sequence[int], config: GenerationConfig, stop: Collection[int]) -> Iterator[int]:
        """Yield an answer's ids, as `Decoder.generate` does."""
        with self.submit(prompt, config, stop=stop) as stream:
            yield from stream

    def _given(self, ask: Callable[[Engine], Given]) -> Given:
        """Ask the engines, the one with the least to do first, until one takes it."""

        def load(engine: Engine) -> int:
            stats = engine.stats()
            return stats.running + stats.waiting

        full: EngineFull | None = None
        for engine in sorted(self.engines, key=load):
            try:
                found = ask(engine)
            except EngineFull as error:
                full = full or error
                continue
            readers: list[Any] = found if isinstance(found, list) else [found]
            for reader in readers:
                reader.worker = self.engines.index(engine)
            return found
        raise full or EngineFull("no engine is there")

    def stats(self) -> Stats:
        """Return the sums over all engines."""
        every = [engine.stats() for engine in self.engines]
        return Stats(**{f.name: sum(getattr(s, f.name) for s in every) for f in dataclasses.fields(Stats)})

    def close(self) -> None:
        """Close all engines."""
        for engine in self.engines:
            engine.close()

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
