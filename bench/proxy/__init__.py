"""Parts of ``bench.proxies``: peers, traffic, accounting and reports."""
