"""What guests wrote on their disks: partition tables, logical volumes, filesystems, and which of their blocks are free.

Nothing here is trusted. `reading` names what every reader takes and gives; the readers run in a child process without
privileges, and what they cannot make sense of is kept.
"""
