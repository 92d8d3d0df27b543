"""An uploaded file becomes canonical files, in a sandboxed process, or is rejected."""
