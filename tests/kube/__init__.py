"""Kubernetes without a cluster: a fake API server and kubelet, and what is tested with them.

::

    store.py      pods, their versions and history        selectors.py  label and field selectors
    admission.py  what a new or changed pod must be       statuses.py   Status objects
    apiserver.py  the HTTP side                           watching.py   its watches
    discovery.py  what kubectl asks first                 faults.py     what goes wrong with calls
    kubelet.py    runs pods as processes of this machine  failures.py   what befalls them
    podrun.py     the life of a pod                       container.py  of one of its containers
    podstatus.py  what its status says                    node.py       what pods share
    rendering.py  a container as a command                processes.py  what it starts
    probes.py     whether it is ready                     addresses.py  one for each pod
    cluster.py    all of it, put together                 manifests.py  pods for tests
"""
