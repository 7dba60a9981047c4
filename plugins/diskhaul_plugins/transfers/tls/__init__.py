"""Transfer ``tls``: exports on other nodes, through their receivers, over mutual TLS 1.3.

settings        options of the transfer and of nodes
identities      certificates: contexts, and who a peer is
authorization   which node may do what with which instance's exports
wire            frames: their kinds, bounds and contents
connection      one connection: frames in and out, with deadlines
calls           requests of a client and their answers
client_store    `ExportStore`, and what it hands out, that asks a receiver
client_stream   a file on its way to a receiver: window, streams, resumption
sessions        exports that a receiver is being sent; what of them outlives the receiver's process
receiver        accepts connections, within bounds
service         what a receiver does for one connection
transfer        the backend
pinned          exports to other clusters: an identity that trusts one certificate
remote_proofs   what the source shows of the tokens that it was given
remote_store    the source's side
remote_receiver the destination's side
"""
