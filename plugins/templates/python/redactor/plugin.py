"""A redactor: what the host calls. The configuration is in rule.py."""

import wit_world
from componentize_py_types import Err
from wit_world.imports import audiences, directory, events

import rule

config = rule.Config()


class WitWorld(wit_world.WitWorld):
    def configure(self, json: str) -> None:
        global config
        try:
            config = rule.parse(json)
        except ValueError as error:
            raise Err(f"configuration: {error}")

    def redact(self, event: events.Event, audience: int) -> list[wit_world.Rendition]:
        contacts = audiences.intersection(audience, directory.contacts(event.user))
        others = audiences.difference(audience, contacts)
        return [
            wit_world.Rendition(audience=contacts, keys=config.contacts, last_seen=True),
            wit_world.Rendition(audience=others, keys=config.others, last_seen=False),
        ]
