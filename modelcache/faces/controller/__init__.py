"""The cluster's one controller: it says on nodes and pods what agents have told of themselves.

Agents may change neither; so a node that was taken over cannot make others believe anything about
another one. Several replicas may run; one of them leads.
"""
