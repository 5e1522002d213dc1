"""Adapter file formats, registered by the hooks an outsider uses."""
