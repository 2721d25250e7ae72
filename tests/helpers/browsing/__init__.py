"""Real browsers without a window, which reach this machine alone: Chromium, Firefox and WebKitGTK."""
