"""Programs run in one process: n ranks as threads, beside one device."""
