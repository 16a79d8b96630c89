-- Version 5: the free disk of a node is told with each of its reports, and no part of its inventory any more.

UPDATE nodes SET inventory = json_remove(inventory, '$.disk_free_bytes');
