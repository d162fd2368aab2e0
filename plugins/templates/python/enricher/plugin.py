"""An enricher: what the host calls. The rule itself is in rule.py."""

import wit_world
from componentize_py_types import Err
from wit_world.imports import events

import rule

config = rule.Config()


class WitWorld(wit_world.WitWorld):
    def configure(self, json: str) -> None:
        global config
        try:
            config = rule.parse(json)
        except ValueError as error:
            raise Err(f"configuration: {error}")

    def enrich(self, event: events.Event) -> list[events.Change]:
        user_agent = events.get("userAgent")
        if not isinstance(user_agent, events.Value_Text):
            return []
        kind = rule.kind(user_agent.value)
        return [events.Change(key=config.into, value=events.Value_Text(kind))]
