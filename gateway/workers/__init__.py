"""Several data-plane processes on one port, beside one control process (``GATEWAY_WORKERS``).

::

    control process                                      worker 0, 1, ...
    registry, life cycle, spawner, API, admin port       listener, routes, a registry link to read
       |                                                    |
       |- listening socket 0, 1, ... -- passed on --------> accepts from its own
       |- control socket (a path) <------ requests -------- for no preview
       '- link (a socket pair) <--- wake, touch, report --- settings, drain --->

The control process keeps every listening socket open, so connections that wait in the queue of a
worker that dies are served by its successor. The link is a socket pair: there is no path by which
anything else could reach it, and its end tells each side of the other's.
"""
