"""Remote exports: what two clusters that share only the cluster-domain secret tell each other, and how they know it is true.

secret      the cluster-domain secret: read, judged, made
signing     documents under HMAC-SHA256
prepared    what the source hands out: the instance, and who will send it
destination what the destination answers: where each disk goes, and who will receive it
other_side  commands at the other cluster, for moves
keys        the source's short-lived keys, and which documents have been used
"""
