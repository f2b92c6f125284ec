"""What every source over HTTP needs: addresses, small requests, answers read, redirects kept."""
