"""A model hub on loopback for the unmodified `huggingface_hub`: repositories, pushes, and faults on demand.

::

    hub = HubServer(folder)                  # tests: the fixture `hub`
    hub.add_account("hf_write", "anna")
    hub.add("anna/adapter", {"adapter_model.safetensors": data})
    hub.faults.add("GET /anna/adapter/resolve", status=503, times=2)
    ran = hub.run_python("import huggingface_hub ...", home=tmp_path)

The client reads its settings when it is imported, so code that talks to the server runs in a process of its own:
:func:`~hubserver.clients.run_python`, :func:`~hubserver.clients.run_lab`. Two origins are served: the hub, and the
storage that it redirects to with signed links, on another port.
"""

from hubserver.clients import Ran, environment
from hubserver.faults import Exchange, Fault
from hubserver.server import HubServer

__all__ = ["Exchange", "Fault", "HubServer", "Ran", "environment"]
