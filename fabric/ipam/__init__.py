"""Decide who gets which address; pure. In the order in which values pass through:

types, block, records, config    what Calico stores, and how it writes it
view                             what a decision is made on, and what it comes to
assign                           which address, which block; what a release leaves
upkeep                           what a node puts right on each pass, and its tunnels' addresses
pools                            which pools may be stored, and how one goes
inventory -> audit -> report     `ipam check`: who holds and who uses each address, what is wrong, and in JSON
inventory -> usage               `ipam show`: how full everything is
"""
