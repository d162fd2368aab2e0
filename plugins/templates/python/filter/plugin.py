"""A filter: what the host calls. The rule itself is in rule.py."""

import wit_world
from componentize_py_types import Err
from wit_world.imports import audiences, directory, events, host

import rule

config = rule.Config()


class WitWorld(wit_world.WitWorld):
    def configure(self, json: str) -> None:
        global config
        try:
            config = rule.parse(json)
        except ValueError as error:
            raise Err(f"configuration: {error}")

    def filter(self, event: events.Event, audience: int) -> int:
        status = events.get("status")
        text = status.value if isinstance(status, events.Value_Text) else None
        if not rule.is_quiet(config, text):
            return audience
        host.explain("the user is quiet: only contacts may see them")
        return audiences.intersection(audience, directory.contacts(event.user))
