"""Episodes on the screen."""

from __future__ import annotations

from typing import Any

from rnr_gym.envs.rendering import SIZE, frame
from rnr_gym.envs.scene import Scene, text

PAUSE = 0.3
"""Seconds that a window shows each step."""


class Window:
    """The `human` rendering: a window, or the text form on standard output without a screen."""

    def __init__(self) -> None:
        # Here, since pyplot selects a backend when it is imported.
        import matplotlib.pyplot as plt
        from matplotlib.backends.registry import BackendFilter, backend_registry

        interactive = backend_registry.list_builtin(BackendFilter.INTERACTIVE)
        self.plt = plt
        self.on_screen = plt.get_backend().lower() in interactive
        self.shown: Any = None

    def show(self, scene: Scene) -> None:
        """Replace what is shown."""
        if not self.on_screen:
            print(text(scene), flush=True)
            return

        if self.shown is None:
            figure, axes = self.plt.subplots(figsize=SIZE)
            axes.set_axis_off()
            figure.subplots_adjust(0, 0, 1, 1)
            self.shown = axes.imshow(frame(scene))
        else:
            self.shown.set_data(frame(scene))
        # A pause runs the event loop, without which nothing is drawn.
        self.plt.pause(PAUSE)

    def close(self) -> None:
        """Close the window if there is one."""
        if self.shown is not None:
            self.plt.close(self.shown.figure)
            self.shown = None
