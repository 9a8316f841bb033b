"""Several engines behind one door: one for each GPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from gpt2chat.engine import Engine
from gpt2chat.errors import ConfigError, EngineFull
from gpt2chat.sampling import GenerationConfig
from gpt2chat.steps import Stats
from gpt2chat.streams import Stream


class Fleet:
    """Gives each request to the engine that has the least to do. All engines have the same model."""

    def __init__(self, engines: Sequence[Engine]) -> None:
        if not engines or len({engine.runtime.config for engine in engines}) > 1:
            raise ConfigError(f"fleet: expected engines of one model, got {len(engines)} of different ones")
        self.engines = list(engines)

    def submit(self, prompt: Sequence[int], config: GenerationConfig | None = None, **options: Any) -> Stream:
        """Ask for an answer as `Engine.submit` does; raises EngineFull when no engine takes it."""

        def load(engine: Engine) -> int:
            stats = engine.stats()
            return stats.running + stats.waiting

        full: EngineFull | None = None
        for engine in sorted(self.engines, key=load):
            try:
                return engine.submit(prompt, config, **options)
            except EngineFull as error:
                full = full or error
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
