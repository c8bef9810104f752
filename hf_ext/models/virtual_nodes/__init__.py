"""Virtual nodes for long-term traffic prediction, and the STGCN that the paper puts them into."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "configuration_virtual_nodes": ["VirtualNodesConfig"],
        "modeling_virtual_nodes": [
            "VirtualNodeAdjacency",
            "VirtualNodeSTGCNForPrediction",
            "VirtualNodeSTGCNForPredictionOutput",
            "VirtualNodeSTGCNModel",
            "VirtualNodeSTGCNModelOutput",
            "VirtualNodeSTGCNPreTrainedModel",
        ],
    },
)
