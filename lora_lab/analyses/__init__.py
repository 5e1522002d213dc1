"""The built-in analyses, registered by the hooks an outsider uses."""
