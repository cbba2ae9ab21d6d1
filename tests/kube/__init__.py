"""Kubernetes without a cluster: a fake API server and kubelet, and what is tested with them.

::

    store.py      pods, their versions and history        selectors.py  label and field selectors
    admission.py  what a new or changed pod must be       statuses.py   Status objects
    apiserver.py  the HTTP side                           discovery.py  what kubectl asks first
    faults.py     what goes wrong with calls and watches
    kubelet.py    runs pods as processes of this machine  (and what it is made of)
    cluster.py    all of it, put together
"""
