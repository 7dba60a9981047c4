"""Transfer ``object``: exports in S3-compatible object stores.

    <prefix>/<instance>/<export id>/<file>               the files of an export, named as in a directory
    <prefix>/<instance>/<export id>/manifest.json        put last; an export without it is not listed
    <prefix>/<instance>/.<export id>.partial/begun       there while the export is being made, with the maker's token
    <prefix>/<instance>/.<export id>.partial/<file>      the id of the multipart upload of a file

An export becomes visible by one conditional put (``If-None-Match: *``) of its manifest, and invisible by the deletion of that
object, before any other. The same conditional put of ``begun`` gives an export id to one maker.

Data goes up as multipart uploads, whose parts are neither listed nor readable, and stay, and are paid for, until the upload is
completed or aborted. obstore makes such uploads, but tells nobody their ids, lists none, and signs no request with a query, so
what a killed process left could not be aborted. Separate objects for parts would be listed, but would have to be copied in the
end. So the requests that uploads consist of are signed here (`signing`), everything else is obstore's. The id of an upload is put
beside the export before its first part is sent, and the store is asked for uploads below the export's prefix as well (which
finds one whose id was not put yet; some servers answer that only for whole keys): `remove_partial` aborts both kinds.
"""

from __future__ import annotations

from importlib.util import find_spec

from diskhaul.api import Capability


def capability() -> Capability:
    if find_spec("obstore") is None:
        return Capability(works=False, detail="needs obstore: pip install 'diskhaul[object]'")
    return Capability(works=True, detail="S3-compatible object stores, by [nodes.NAME.options] bucket")
