"""Images, reports and studies, and the pairs drawn from them."""
