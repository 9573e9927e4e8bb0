"""TLS for HTTP: how to check the server, and how to name oneself."""

import ssl

from tfserve_kit.clients.options import Options
from tfserve_kit.errors import UsageError


def tls_context(options: Options) -> ssl.SSLContext:
    """Return what connections are secured with.

    Raises:
        UsageError: a file cannot be read, or holds no certificate or key.
    """
    try:
        context = ssl.create_default_context(cafile=options.ca_file)
        # A certificate that is named itself is trusted, whoever signed it; so does gRPC.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        if options.cert_file:
            context.load_cert_chain(options.cert_file, options.key_file)
    except OSError as error:  # ssl.SSLError is one
        files = [
            str(file) for file in (options.ca_file, options.cert_file, options.key_file) if file
        ]
        raise UsageError(
            f"cannot use the TLS files {', '.join(files)}: {error}",
            remedy="give PEM files that can be read",
        ) from error
    return context
