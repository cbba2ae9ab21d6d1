"""Pods as dev servers: the API server's client, the reflector of its pods, and what they are.

::

    config.py      where the API server is, and who the gateway is to it
    kubeconfig.py  the same from a kubeconfig file
    tokens.py      bearer tokens that are replaced while the gateway runs
    client.py      the calls
    refusals.py    answers of the API server as errors of the gateway (pure)
    pauses.py      how long to wait before another try (pure)
    reflector.py   the pods of a selector, kept up to date
    agent.py       calls of the agent inside a pod (docs/agent.md)
    agent_wire.py  what is said to it, and what it says (pure)
"""
