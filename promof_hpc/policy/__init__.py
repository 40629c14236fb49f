"""The policies: a chemist that writes component sets, an engineer that assembles them, and how both are pretrained."""
