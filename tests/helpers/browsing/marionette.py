"""Selenium's commands in Marionette, the protocol by which Firefox itself is driven; no geckodriver is between them.

Every message is `LENGTH:[0, number, name, parameters]`, its reply `LENGTH:[1, number, error, result]`. The commands
are those of WebDriver, under other names.
"""

from __future__ import annotations

import json
import socket
from typing import Any, Final

from selenium.webdriver.remote.client_config import ClientConfig
from selenium.webdriver.remote.command import Command
from selenium.webdriver.remote.remote_connection import RemoteConnection

_COMMANDS: Final = {
    Command.NEW_SESSION: "WebDriver:NewSession",
    Command.QUIT: "Marionette:Quit",
    Command.GET: "WebDriver:Navigate",
    Command.W3C_EXECUTE_SCRIPT: "WebDriver:ExecuteScript",
    Command.W3C_EXECUTE_SCRIPT_ASYNC: "WebDriver:ExecuteAsyncScript",
    Command.SCREENSHOT: "WebDriver:TakeScreenshot",
    Command.FIND_ELEMENT: "WebDriver:FindElement",
    Command.FIND_ELEMENTS: "WebDriver:FindElements",
    Command.FIND_CHILD_ELEMENT: "WebDriver:FindElement",
    Command.FIND_CHILD_ELEMENTS: "WebDriver:FindElements",
    Command.W3C_GET_ACTIVE_ELEMENT: "WebDriver:GetActiveElement",
    Command.CLICK_ELEMENT: "WebDriver:ElementClick",
    Command.CLEAR_ELEMENT: "WebDriver:ElementClear",
    Command.SEND_KEYS_TO_ELEMENT: "WebDriver:ElementSendKeys",
    Command.GET_ELEMENT_TEXT: "WebDriver:GetElementText",
    Command.GET_ELEMENT_TAG_NAME: "WebDriver:GetElementTagName",
    Command.GET_ELEMENT_RECT: "WebDriver:GetElementRect",
    Command.GET_ELEMENT_ARIA_LABEL: "WebDriver:GetComputedLabel",
    Command.IS_ELEMENT_ENABLED: "WebDriver:IsElementEnabled",
    Command.IS_ELEMENT_SELECTED: "WebDriver:IsElementSelected",
    Command.W3C_ACTIONS: "WebDriver:PerformActions",
    Command.SET_TIMEOUTS: "WebDriver:SetTimeouts",
    Command.SET_WINDOW_RECT: "WebDriver:SetWindowRect",
}

_CHILDREN: Final = (Command.FIND_CHILD_ELEMENT, Command.FIND_CHILD_ELEMENTS)


class MarionetteConnection(RemoteConnection):
    """A command executor of Selenium. Firefox listens at `port` of this machine."""

    def __init__(self, port: int, patience_s: float):
        super().__init__(client_config=ClientConfig(remote_server_addr=f"http://127.0.0.1:{port}"))
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=patience_s)
        self._stream = self._socket.makefile("rb")
        self._number = 0
        self._received()  # Firefox says who it is.

    def execute(self, command: str, params: dict[str, Any]) -> dict[str, Any]:
        """The reply, in the form in which a driver over HTTP would give it."""
        given = {name: value for name, value in params.items() if name != "sessionId"}
        if command == Command.NEW_SESSION:
            given = given["capabilities"]["alwaysMatch"]
        elif command == Command.QUIT:
            given = {"flags": ["eForceQuit"]}
        elif command in _CHILDREN:
            given["element"] = given.pop("id")
        error, result = self.send(_COMMANDS[command], given)
        if error is not None:
            return {"status": 500, "value": json.dumps({"value": error})}
        return {"value": result["value"] if isinstance(result, dict) and result.keys() == {"value"} else result}

    def send(self, name: str, parameters: dict[str, Any]) -> tuple[dict[str, Any] | None, Any]:
        """Send a command: the error and the result."""
        self._number += 1
        message = json.dumps([0, self._number, name, parameters]).encode()
        self._socket.sendall(b"%d:%s" % (len(message), message))
        _, number, error, result = self._received()
        assert number == self._number
        return error, result

    def _received(self) -> Any:
        length = b""
        while (character := self._stream.read(1)) != b":":
            if not character:
                raise ConnectionError("Firefox closed the connection.")
            length += character
        return json.loads(self._stream.read(int(length)))

    def close(self) -> None:
        """Close the connection."""
        self._stream.close()
        self._socket.close()
