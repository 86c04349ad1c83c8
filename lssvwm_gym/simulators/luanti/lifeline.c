/* Preloaded into the game's client and into its X server: ends the process when the one that started it is gone, however
 * that came about, and then removes the files both have worked with.
 *
 * LIFELINE_OWNER   process id of the owner; without it nothing happens
 * LIFELINE_FOLDER  what to remove
 *
 * PR_SET_PDEATHSIG would be shorter, but it fires when the owner's *thread* ends.
 */
#define _XOPEN_SOURCE 700
#define _DEFAULT_SOURCE
#include <ftw.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define LOOKS_A_SECOND 5
#define SECONDS_TO_END 1

static pid_t owner;
static char folder[4096];

/* Not nanosleep, which lockstep.c has its own idea of. */
static void sleep_seconds(double seconds) {
    struct timespec span = {(time_t)seconds, (long)((seconds - (time_t)seconds) * 1e9)};
    syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &span, NULL);
}

static int remove_entry(const char *path, const struct stat *status, int kind, struct FTW *place) {
    (void)status, (void)kind, (void)place;
    remove(path);
    return 0;
}

static void remove_folder(void) {
    if (folder[0])
        nftw(folder, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

static void *watch(void *unused) {
    (void)unused;
    while (getppid() == owner)
        sleep_seconds(1.0 / LOOKS_A_SECOND);
    remove_folder();
    kill(getpid(), SIGTERM); /* an X server removes its socket */
    sleep_seconds(SECONDS_TO_END);
    remove_folder(); /* what has been written since */
    kill(getpid(), SIGKILL);
    return NULL;
}

__attribute__((constructor)) static void begin(void) {
    const char *number = getenv("LIFELINE_OWNER"), *path = getenv("LIFELINE_FOLDER");
    pthread_t thread;
    if (!number)
        return;
    owner = (pid_t)atol(number);
    snprintf(folder, sizeof folder, "%s", path ? path : "");
    unsetenv("LD_PRELOAD"); /* this is for this process, not for its children */
    unsetenv("LIFELINE_OWNER");
    if (pthread_create(&thread, NULL, watch, NULL))
        _exit(70);
    pthread_detach(thread);
}
