"""The folders that go to the Hub, one per method; see `hf_ext.catalog.Method.card`."""
